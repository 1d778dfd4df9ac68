"""fastbp: training dense neural networks on multi-core CPUs as fast as the silicon allows."""

from . import kernels, schedules
from ._core import version as _version
from .callbacks import EarlyStopping, ModelCheckpoint, ReduceLROnPlateau
from .gradcheck import check_gradients
from .graph import Sequential
from .io import load
from .layers import ELU, GELU, Dropout, Identity, LeakyReLU, Linear, ReLU, Sigmoid, SiLU, Softmax, Softplus, Tanh
from .losses import BCELoss, BCEWithLogitsLoss, CrossEntropyLoss, HuberLoss, L1Loss, MSELoss
from .optim import SGD, Adam, AdamW
from .runtime import get_num_threads, num_threads, set_num_threads, show_config
from .training import History, minibatches

__version__ = _version()

__all__ = [
    "ELU", "GELU", "SGD", "Adam", "AdamW", "BCELoss", "BCEWithLogitsLoss", "CrossEntropyLoss", "Dropout", "EarlyStopping", "History", "HuberLoss",
    "Identity", "L1Loss", "LeakyReLU", "Linear", "MSELoss", "ModelCheckpoint", "ReLU", "ReduceLROnPlateau", "Sequential", "SiLU", "Sigmoid",
    "Softmax", "Softplus", "Tanh", "check_gradients", "get_num_threads", "kernels", "load", "minibatches", "num_threads", "schedules",
    "set_num_threads", "show_config",
]
