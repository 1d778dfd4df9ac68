"""Symbols: a graph while it is described.

`Input` begins one; layers and functions called on symbols, and arithmetic between them, go on. A symbol stands for a matrix (B, width): examples
are rows. A `Model` is made of the symbols that its outputs need. Symbols hold no numbers.
"""

from __future__ import annotations

import builtins
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import arrays, init as initialisers


class Layer:
    """A description of one step of a computation. It holds hyper-parameters and no arrays; a model gives it parameters.

    Called on a symbol it makes the symbol of its result; called twice it shares its parameters.

    For the compiler a layer is its `operation`: "dense", "activation" (elementwise), "softmax", "dropout" (probability alpha), "identity",
    "layernorm", "batchnorm", "embedding", or one of the graph's own below. An activation names its kernel in `function` and its parameter in `alpha`; `derivative_from` says whether f'
    comes from the output (then it fuses into the layer before it) or needs the input kept.
    """

    operation: str
    function = "identity"
    alpha = 0.0
    derivative_from = "output"
    name: str | None = None   # of its parameters, when the caller has given one
    in_features: int | None = None   # the only width it takes, if there is one
    transposed = False   # whether its weight (out, in) lies in memory as (in, out)
    statistics: frozenset[str] = frozenset()   # those of `shapes` that training passes measure instead of the optimizer's training them

    def width(self, inputs: int | None) -> int | None:
        """Output features for `inputs` features; None while they are unknown. ValueError when the layer cannot take them."""
        if None not in (inputs, self.in_features) and inputs != self.in_features:
            raise ValueError(f"{self!r} expects {self.in_features} features, got {inputs}")
        return inputs

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name of each parameter -> its shape; "" names the only one of a layer."""
        return {}

    def initial(self, part: str, rng: np.random.Generator) -> Any:
        """Initial values of one of `shapes`; KeyError for another."""
        raise KeyError(part)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments as plain data."""
        return {}

    def __call__(self, node: Symbol) -> Symbol:
        """The symbol of this layer's result. TypeError for what is no symbol, ValueError for a width that does not fit."""
        if not isinstance(node, Symbol):
            raise TypeError(f"{type(self).__name__} takes a node such as fb.Input(8), got {arrays.describe(node)}; arrays are for models")
        width = self.width(node.width)
        assert width is not None
        return Symbol(self, (node,), width)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.config().items())})"


_serial = itertools.count()


class Symbol:
    """A node of a graph: `layer` applied to the symbols it `reads`; `width` features. An input has no layer.

    Combined by ``+ - * /`` with a symbol of the same width, with one of width 1, which counts for every feature, or with a number; and unary -.
    """

    __array_ufunc__ = None   # numpy's scalars and arrays leave the operators to this class

    def __init__(self, layer: Layer | None, reads: tuple[Symbol, ...], width: int, source: Any = None):
        self.layer, self.reads, self.width = layer, reads, width
        self.source = source            # the model that was called to make it, whose parameters it begins with
        self.serial = next(_serial)     # order of first mention, hence a topological order

    def __repr__(self) -> str:
        what = "Input" if self.layer is None else repr(self.layer)
        return f"<node {self.serial}: {what} -> (B, {self.width})>"

    def __add__(self, other: Any) -> Symbol: return _arithmetic("plus", self, other)
    def __radd__(self, other: Any) -> Symbol: return _arithmetic("plus", other, self)
    def __sub__(self, other: Any) -> Symbol: return _arithmetic("minus", self, other)
    def __rsub__(self, other: Any) -> Symbol: return _arithmetic("minus", other, self)
    def __mul__(self, other: Any) -> Symbol: return _arithmetic("times", self, other)
    def __rmul__(self, other: Any) -> Symbol: return _arithmetic("times", other, self)
    def __truediv__(self, other: Any) -> Symbol: return _arithmetic("over", self, other)
    def __rtruediv__(self, other: Any) -> Symbol: return _arithmetic("over", other, self)
    def __neg__(self) -> Symbol: return Affine(-1.0, 0.0)(self)
    def __pos__(self) -> Symbol: return self

    def __bool__(self) -> bool:
        raise TypeError(f"{self!r} has no truth value: it stands for numbers that are not there yet")

    def __iter__(self) -> Any:
        raise TypeError(f"{self!r} cannot be iterated over")


def Input(features: int) -> Symbol:
    """A symbol for a matrix (B, features) that is given to the model. TypeError and ValueError for features that are no positive integer."""
    return Symbol(None, (), arrays.integer("features", features, least=1))


class Parameter(Symbol):
    """A trainable value that broadcasts over the rows, and over the features too when there is one only.

    shape () or (n,); init: a number for all elements, an array of this shape, or a callable(rng, shape). name: the parameter's in the model,
    "parameter_0", "parameter_1", ... in order of first mention if None. docs/by-hand S7, S12. Raises TypeError and ValueError for other shapes and inits.
    """

    def __init__(self, shape: int | Sequence[int] = (), init: Any = 0.0, name: str | None = None):
        sizes = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
        if len(sizes) > 1:
            raise ValueError(f"shape must be () or (n,), got {shape!r}")
        sizes = tuple(arrays.integer("shape", size, least=1) for size in sizes)
        super().__init__(Values(sizes, init, name), (), sizes[0] if sizes else 1)


# ---- layers that only graphs have -----------------------------------------------------------------------------------------------------------

def named(name: Any) -> str | None:
    """A parameter's name as the caller gives it, checked."""
    if name is not None and (not isinstance(name, str) or not name or "." in name):
        raise (ValueError if isinstance(name, str) else TypeError)(f"name must be a string without dots that is not empty, or None, got {name!r}")
    return name


class Values(Layer):
    """What a Parameter holds."""

    operation = "parameter"

    def __init__(self, shape: tuple[int, ...], init: Any = 0.0, name: str | None = None):
        self.shape, self.name = tuple(shape), named(name)
        if isinstance(init, str):
            raise TypeError(f"init must be a number, an array or a callable(rng, shape), got {init!r}")
        self.init = init if callable(init) else np.array(np.broadcast_to(arrays.real("init", init), self.shape), np.float64)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"": self.shape}

    def initial(self, part: str, rng: np.random.Generator) -> Any:
        return initialisers.weight(self.init, rng, self.shape) if callable(self.init) else self.init

    def __getstate__(self) -> dict[str, Any]:   # a function is no data; the values it drew are kept by the models
        return self.__dict__ | ({"init": np.zeros(self.shape)} if callable(self.init) else {})

    def config(self) -> dict[str, Any]:
        return {"shape": list(self.shape)} | ({"name": self.name} if self.name else {})


class Transposed(Layer):
    """y = x w + b with the weight w (out, in) of another Linear, `base`, and an own bias: made by Linear.transpose()."""

    operation = "dense"

    def __init__(self, base: Any, bias: bool = True, name: str | None = None):
        self.base, self.bias, self.name = base, arrays.flag("bias", bias), named(name)
        self.transposed = not base.transposed
        self.in_features, self.out_features = base.out_features, base.in_features

    def width(self, inputs: int | None) -> int:
        super().width(inputs)
        return self.out_features

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"bias": (self.out_features,)} if self.bias else {}

    def initial(self, part: str, rng: np.random.Generator) -> Any:
        return initialisers.bias(self.base.init, rng, (self.out_features,), self.in_features)

    def config(self) -> dict[str, Any]:
        return {"bias": self.bias} | ({"name": self.name} if self.name else {})


class Binary(Layer):
    """y = a function b, elementwise: "plus", "minus", "times" (docs/by-hand S7's Hadamard product) or "over"."""

    operation = "binary"

    def __init__(self, function: str):
        if function not in ("plus", "minus", "times", "over"):
            raise ValueError(f"function must be plus, minus, times or over, got {function!r}")
        self.function = function

    def config(self) -> dict[str, Any]:
        return {"function": self.function}


class Affine(Layer):
    """y = factor x + summand, with numbers."""

    operation = "affine"

    def __init__(self, factor: float, summand: float):
        self.alpha, self.beta = arrays.number("factor", factor), arrays.number("summand", summand)

    def config(self) -> dict[str, Any]:
        return {"factor": self.alpha, "summand": self.beta}


class Expand(Layer):
    """(B, 1) -> (B, features): the same number for every feature."""

    operation = "expand"

    def __init__(self, features: int):
        self.features = arrays.integer("features", features, least=1)

    def width(self, inputs: int | None) -> int:
        return self.features

    def config(self) -> dict[str, Any]:
        return {"features": self.features}


class Sum(Layer):
    """(B, n) -> (B, 1): the sum of a row."""

    operation = "sum"

    def width(self, inputs: int | None) -> int:
        return 1


class Concat(Layer):
    """Columns side by side."""

    operation = "concat"


class Pick(Layer):
    """Columns [at, at + features) of an input that holds several."""

    operation = "pick"

    def __init__(self, at: int, features: int):
        self.at, self.features = at, features

    def width(self, inputs: int | None) -> int:
        return self.features


def _arithmetic(function: str, a: Any, b: Any) -> Symbol:
    if isinstance(a, Symbol) and isinstance(b, Symbol):
        if a.width != b.width and 1 not in (a.width, b.width):
            raise ValueError(f"{a!r} and {b!r} have {a.width} and {b.width} features: they must have as many, or one of them 1")
        width = max(a.width, b.width)
        a, b = (s if s.width == width else Expand(width)(s) for s in (a, b))
        return Symbol(Binary(function), (a, b), width)
    number, first = (b, True) if isinstance(a, Symbol) else (a, False)
    if isinstance(number, np.ndarray) and number.ndim > 0 or not isinstance(number, int | float | np.number | np.ndarray):
        raise TypeError(f"nodes are combined with nodes and numbers, got {arrays.describe(number)} (a constant vector: fb.Parameter(shape, init=...))")
    c = arrays.number("number", number)
    node = a if first else b
    if function == "plus":
        return Affine(1.0, c)(node)
    if function == "minus":
        return Affine(1.0, -c)(node) if first else Affine(-1.0, c)(node)
    if function == "times":
        return Affine(c, 0.0)(node)
    if first:
        if c == 0:
            raise ValueError(f"number: {node!r} cannot be divided by 0")
        return Affine(1 / c, 0.0)(node)
    return Affine(c, 0.0)(KINDS["Reciprocal"]()(node))


KINDS: dict[str, type[Layer]] = {kind.__name__: kind for kind in (Values, Transposed, Binary, Affine, Expand, Sum, Concat)}   # what a model file may name


def concat(nodes: Sequence[Symbol]) -> Symbol:
    """The features of several nodes side by side: (B, n1), (B, n2), ... -> (B, n1 + n2 + ...)."""
    if isinstance(nodes, Symbol) or not isinstance(nodes, Sequence):
        raise TypeError(f"nodes must be a sequence of nodes, got {arrays.describe(nodes)}")
    if not nodes:
        raise ValueError("nodes must hold at least one node, got none")
    for i, node in enumerate(nodes):
        if not isinstance(node, Symbol):
            raise TypeError(f"nodes[{i}] must be a node such as fb.Input(8), got {arrays.describe(node)}")
    return Symbol(Concat(), tuple(nodes), builtins.sum(node.width for node in nodes)) if len(nodes) > 1 else nodes[0]


def sum(node: Symbol) -> Symbol:
    """The sum over the features of each row: (B, n) -> (B, 1) (docs/by-hand S7)."""
    return Sum()(node)
