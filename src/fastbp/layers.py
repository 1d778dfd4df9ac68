"""Layers: descriptions of what a network computes (see graph.Layer).

Examples are rows: x (B, in) -> (B, out). Names, defaults and formulas are those of torch.nn.
"""

from __future__ import annotations

from typing import Any

from . import arrays, init as initialisers
from .graph import KINDS, Layer


class Linear(Layer):
    """y = x wᵀ + b        x (B, in_features)  w (out_features, in_features)  b (out_features,)

    init: "default" (U(±1/√in) for weight and bias, as torch.nn.Linear), "xavier_uniform", "xavier_normal", "kaiming_uniform",
    "kaiming_normal", "zeros", or a callable(rng, shape) -> array; see fastbp.init. Backward (MATH.md BP2-BP4):
    dx = dy w, db = 1ᵀ dy, dw = dyᵀ x.

    Raises TypeError for features that are not integers or a bias that is not a bool, ValueError for features below 1 and
    unknown initialisers.
    """

    operation = "dense"

    def __init__(self, in_features: int, out_features: int, bias: bool = True, init: initialisers.Initialiser = "default"):
        self.in_features = arrays.integer("in_features", in_features, least=1)
        self.out_features = arrays.integer("out_features", out_features, least=1)
        self.bias = arrays.flag("bias", bias)
        initialisers.validate(init)
        self.init = init

    def width(self, inputs: int | None) -> int:
        if inputs is not None and inputs != self.in_features:
            raise ValueError(f"{self!r} expects {self.in_features} features, got {inputs}")
        return self.out_features

    def config(self) -> dict[str, Any]:
        named = isinstance(self.init, str)   # a function is no data; the weights it drew are saved anyway
        return {"in_features": self.in_features, "out_features": self.out_features, "bias": self.bias,
                "init": self.init if named else "default"}


class Identity(Layer):
    """y = x"""

    operation = "identity"


class Activation(Layer):
    """An elementwise function."""

    operation = "activation"


class ReLU(Activation):
    """y = max(x, 0); y' = 1 for x > 0, else 0 (MATH.md S10: 0 at 0)."""

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
    """y = 1 / (1 + e^-x); y' = y (1 - y) (MATH.md S11)."""

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


KINDS.update({kind.__name__: kind for kind in (Linear, Identity, ReLU, LeakyReLU, Sigmoid, Tanh, Softplus, GELU, SiLU, ELU, Softmax, Dropout)})
