"""fastbp: training dense neural networks on multi-core CPUs as fast as the silicon allows."""

from . import kernels, schedules
from ._core import version as _version
from .callbacks import EarlyStopping, ModelCheckpoint, ReduceLROnPlateau
from .gradcheck import check_gradients
from .graph import Model, Sequential
from .io import load
from .layers import (
    ELU, GELU, BatchNorm1d, Dropout, Embedding, Identity, LayerNorm, LeakyReLU, Linear, ReLU, Sigmoid, SiLU, Softmax, Softplus, Tanh, cos, exp, log, relu,
    sigmoid, sin, sqrt, square, tanh,
)
from .losses import BCELoss, BCEWithLogitsLoss, CrossEntropyLoss, HuberLoss, L1Loss, MSELoss, PoissonLoss, QuantileLoss
from .optim import SGD, Adam, AdamW
from .runtime import get_num_threads, num_threads, set_num_threads, show_config
from .symbols import Input, Parameter, concat, sum
from .training import History, minibatches

__version__ = _version()

__all__ = [
    "ELU", "GELU", "SGD", "Adam", "AdamW", "BCELoss", "BCEWithLogitsLoss", "BatchNorm1d", "CrossEntropyLoss", "Dropout", "EarlyStopping", "Embedding",
    "History", "HuberLoss", "Identity", "Input", "L1Loss", "LayerNorm", "LeakyReLU", "Linear", "MSELoss", "Model", "ModelCheckpoint", "Parameter",
    "PoissonLoss", "QuantileLoss", "ReLU", "ReduceLROnPlateau",
    "Sequential", "SiLU", "Sigmoid", "Softmax", "Softplus", "Tanh", "check_gradients", "concat", "cos", "exp", "get_num_threads", "kernels", "load",
    "log", "minibatches", "num_threads", "relu", "schedules", "set_num_threads", "show_config", "sigmoid", "sin", "sqrt", "square", "sum", "tanh",
]
