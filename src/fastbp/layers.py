"""Layers: descriptions of what a network computes (see symbols.Layer), and functions on symbols.

Examples are rows: x (B, in) -> (B, out). Names, defaults and formulas are those of torch.nn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import arrays, init as initialisers
from .symbols import KINDS, Layer, Symbol, Transposed, named

if TYPE_CHECKING:
    import numpy as np


class Linear(Layer):
    """y = x wᵀ + b, with x (B, in_features), w (out_features, in_features), b (out_features,).

    init: "default" (U(±1/√in) for weight and bias, as torch.nn.Linear), "xavier_uniform", "xavier_normal", "kaiming_uniform",
    "kaiming_normal", "zeros", or a callable(rng, shape) -> array; see fastbp.init. name: what its parameters are called in a model, before
    ".weight" and ".bias". Backward (docs/by-hand BP2-BP4): dx = dy w, db = 1ᵀ dy, dw = dyᵀ x.

    Raises TypeError for features that are not integers or a bias that is not a bool, ValueError for features below 1 and
    unknown initialisers.
    """

    operation = "dense"

    def __init__(self, in_features: int, out_features: int, bias: bool = True, init: initialisers.Initialiser = "default",
                 name: str | None = None):
        self.in_features = arrays.integer("in_features", in_features, least=1)
        self.out_features = arrays.integer("out_features", out_features, least=1)
        self.bias = arrays.flag("bias", bias)
        initialisers.validate(init)
        self.init = init
        self.name = named(name)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        weight = {"weight": (self.out_features, self.in_features)}
        return weight | {"bias": (self.out_features,)} if self.bias else weight

    def initial(self, part: str, rng: np.random.Generator) -> Any:
        if part == "weight":
            return initialisers.weight(self.init, rng, (self.out_features, self.in_features))
        return initialisers.bias(self.init, rng, (self.out_features,), self.in_features)

    def __getstate__(self) -> dict[str, Any]:   # a function is no data; the weights it drew are kept by the models
        return self.__dict__ | ({"init": "default"} if callable(self.init) else {})

    def transpose(self, bias: bool = True, name: str | None = None) -> Transposed:
        """A layer of out_features to in_features features that shares this one's weight transposed, with a bias of its own: y = x w + b."""
        return Transposed(self, bias, name)

    def width(self, inputs: int | None) -> int:
        super().width(inputs)
        return self.out_features

    def config(self) -> dict[str, Any]:
        by_name = isinstance(self.init, str)   # a function is no data; the weights it drew are saved anyway
        return {"in_features": self.in_features, "out_features": self.out_features, "bias": self.bias,
                "init": self.init if by_name else "default"} | ({"name": self.name} if self.name else {})


class Identity(Layer):
    """y = x"""

    operation = "identity"


class Activation(Layer):
    """An elementwise function."""

    operation = "activation"


class ReLU(Activation):
    """y = max(x, 0); y' = 1 for x > 0, else 0 (docs/by-hand S10: 0 at 0)."""

    function = "relu"


class LeakyReLU(Activation):
    """y = x for x > 0, else negative_slope * x; y' = 1 or negative_slope. Any finite slope."""

    function = "leaky_relu"

    def __init__(self, negative_slope: float = 0.01):
        self.alpha = self.negative_slope = arrays.number("negative_slope", negative_slope)
        if self.alpha < 0:   # the output's sign no longer tells the input's
            self.derivative_from = "input"

    def config(self) -> dict[str, Any]:
        return {"negative_slope": self.negative_slope}


class Sigmoid(Activation):
    """y = 1 / (1 + e^-x); y' = y (1 - y) (docs/by-hand S11)."""

    function = "sigmoid"


class Tanh(Activation):
    """y = tanh x; y' = 1 - y²."""

    function = "tanh"


class Softplus(Activation):
    """y = log(1 + e^x); y' = sigmoid(x). torch.nn.Softplus with beta 1 and without its linear shortcut."""

    function = "softplus"
    derivative_from = "input"


class GELU(Activation):
    """y = x Φ(x), Φ the normal distribution function (the erf form); y' = Φ(x) + x φ(x)."""

    function = "gelu"
    derivative_from = "input"


class SiLU(Activation):
    """y = x sigmoid(x); y' = s + x s (1 - s) with s = sigmoid(x)."""

    function = "silu"
    derivative_from = "input"


class ELU(Activation):
    """y = x for x > 0, else e^x - 1; y' = 1, or y + 1. torch.nn.ELU with alpha 1."""

    function = "elu"
    alpha = 1.0


class Exp(Activation):
    """y = eˣ; y' = y."""

    function = "exp"


class Log(Activation):
    """y = log x; y' = 1/x."""

    function = "log"
    derivative_from = "input"


class Sin(Activation):
    """y = sin x; y' = cos x."""

    function = "sin"
    derivative_from = "input"


class Cos(Activation):
    """y = cos x; y' = -sin x."""

    function = "cos"
    derivative_from = "input"


class Square(Activation):
    """y = x²; y' = 2x."""

    function = "square"
    derivative_from = "input"


class Sqrt(Activation):
    """y = √x; y' = 1/(2y)."""

    function = "sqrt"


class Reciprocal(Activation):
    """y = 1/x; y' = -y²."""

    function = "reciprocal"


class Softmax(Layer):
    """y_j = e^(x_j) / Σ e^(x_k) over the features of a row; dx = y (dy - Σ dy y)."""

    operation = "softmax"


class Dropout(Layer):
    """In training y = x m / (1 - p) with m = 1 with probability 1 - p, else 0; the identity in predict and evaluate.

    The bits of m depend on the model's seed, the number of training passes, the layer's position and the element alone: not on
    threads. 0 <= p <= 1, as torch.nn.Dropout (p = 1 gives zeros).
    """

    operation = "dropout"

    def __init__(self, p: float = 0.5):
        self.alpha = self.p = arrays.number("p", p, low=0, high=1)

    def config(self) -> dict[str, Any]:
        return {"p": self.p}


class LayerNorm(Layer):
    """y = (x - mean) / √(var + eps) · weight + bias, mean and (biased) variance over the features of each row; torch.nn.LayerNorm.

    weight and bias (normalized_shape,), 1 and 0 at first; without `elementwise_affine` there are none, without `bias` only the weight. eps > 0. Raises TypeError for
    a normalized_shape that is no integer and flags that are no bools, ValueError for one below 1 and eps not above 0.
    """

    operation = "layernorm"

    def __init__(self, normalized_shape: int, eps: float = 1e-5, elementwise_affine: bool = True, bias: bool = True, name: str | None = None):
        self.in_features = arrays.integer("normalized_shape", normalized_shape, least=1)
        self.eps = arrays.number("eps", eps, low=0, open_low=True)
        self.affine, self.bias = arrays.flag("elementwise_affine", elementwise_affine), arrays.flag("bias", bias)
        self.name = named(name)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        parts = ("weight", "bias")[: 1 + self.bias] if self.affine else ()
        return {part: (self.in_features,) for part in parts}

    def initial(self, part: str, rng: np.random.Generator) -> float:
        return {"weight": 1.0, "bias": 0.0}[part]

    def config(self) -> dict[str, Any]:
        return {"normalized_shape": self.in_features, "eps": self.eps, "elementwise_affine": self.affine,
                "bias": self.bias} | ({"name": self.name} if self.name else {})


class BatchNorm1d(Layer):
    """y = (x - mean) / √(var + eps) · weight + bias, mean and (biased) variance of each feature over the batch; torch.nn.BatchNorm1d.

    In predict and evaluate mean and variance are the running ones, which every training pass moves: running = (1 - momentum) running + momentum batch,
    the variance with B - 1 in its denominator; with momentum None they are the average of all batches. They are in `state_dict` and in files, not in
    `parameters`. A training batch needs two rows at least: ValueError. weight, bias (num_features,), 1 and 0 at first; without `affine` there are none.
    eps > 0, 0 <= momentum <= 1. Raises TypeError and ValueError for other arguments.
    """

    operation = "batchnorm"
    statistics = frozenset(("running_mean", "running_var", "num_batches_tracked"))

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True, name: str | None = None):
        self.in_features = arrays.integer("num_features", num_features, least=1)
        self.eps = arrays.number("eps", eps, low=0, open_low=True)
        self.momentum = None if momentum is None else arrays.number("momentum", momentum, low=0, high=1)
        self.alpha = -1.0 if self.momentum is None else self.momentum
        self.affine, self.name = arrays.flag("affine", affine), named(name)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        vectors = (*(("weight", "bias") if self.affine else ()), "running_mean", "running_var")
        return {part: (self.in_features,) for part in vectors} | {"num_batches_tracked": ()}

    def initial(self, part: str, rng: np.random.Generator) -> float:
        return 1.0 if part in ("weight", "running_var") else 0.0

    def config(self) -> dict[str, Any]:
        return {"num_features": self.in_features, "eps": self.eps, "momentum": self.momentum, "affine": self.affine} | ({"name": self.name} if self.name else {})


class Embedding(Layer):
    """Rows of a table for whole numbers: (B, k) numbers -> (B, k · embedding_dim), the row of each number side by side; torch.nn.Embedding.

    Reads an input (fb.Input(k), or the input of a Sequential) that holds categories 0 to num_embeddings - 1; other values are a ValueError with row and column.
    weight (num_embeddings, embedding_dim), drawn from N(0, 1) as in PyTorch, or by `init` as Linear's. Its gradient at a row is the sum over all places
    where its number stands; the numbers' own gradient is 0. Raises TypeError and ValueError for sizes that are no positive integers and unknown
    initialisers; a float32 model holds numbers up to 2^24 exactly, more categories are a ValueError.
    """

    operation = "embedding"

    def __init__(self, num_embeddings: int, embedding_dim: int, init: initialisers.Initialiser = "normal", name: str | None = None):
        self.at = self.num_embeddings = arrays.integer("num_embeddings", num_embeddings, least=1)
        self.embedding_dim = arrays.integer("embedding_dim", embedding_dim, least=1)
        if init != "normal":
            initialisers.validate(init)
        self.init, self.name = init, named(name)

    def width(self, inputs: int | None) -> int | None:
        return None if inputs is None else inputs * self.embedding_dim

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.num_embeddings, self.embedding_dim)}

    def initial(self, part: str, rng: np.random.Generator) -> Any:
        shape = self.shapes()[part]
        return rng.standard_normal(shape) if self.init == "normal" else initialisers.weight(self.init, rng, shape)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | ({"init": "normal"} if callable(self.init) else {})

    def config(self) -> dict[str, Any]:
        return {"num_embeddings": self.num_embeddings, "embedding_dim": self.embedding_dim,
                "init": self.init if isinstance(self.init, str) else "normal"} | ({"name": self.name} if self.name else {})


KINDS.update({kind.__name__: kind for kind in (Linear, Identity, ReLU, LeakyReLU, Sigmoid, Tanh, Softplus, GELU, SiLU, ELU, Exp, Log, Sin, Cos, Square, Sqrt,
                                               Reciprocal, Softmax, Dropout, LayerNorm, BatchNorm1d, Embedding)})


# ---- functions on symbols, elementwise -------------------------------------------------------------------------------------------------------

def exp(node: Symbol) -> Symbol:
    """e to each element."""
    return Exp()(node)


def log(node: Symbol) -> Symbol:
    """The natural logarithm; NaN below 0."""
    return Log()(node)


def sin(node: Symbol) -> Symbol:
    """The sine, of radians."""
    return Sin()(node)


def cos(node: Symbol) -> Symbol:
    """The cosine, of radians."""
    return Cos()(node)


def tanh(node: Symbol) -> Symbol:
    """The hyperbolic tangent."""
    return Tanh()(node)


def sigmoid(node: Symbol) -> Symbol:
    """1 / (1 + e^-x)."""
    return Sigmoid()(node)


def relu(node: Symbol) -> Symbol:
    """max(x, 0)."""
    return ReLU()(node)


def square(node: Symbol) -> Symbol:
    """x²."""
    return Square()(node)


def sqrt(node: Symbol) -> Symbol:
    """The square root; NaN below 0, and an infinite derivative at 0."""
    return Sqrt()(node)
