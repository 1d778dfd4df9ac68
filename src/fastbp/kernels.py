"""What the layers are made of, for one's own loops: ``from fastbp import kernels as K``.

Every function takes float32 or float64 arrays of one dtype, writes into `out` when given (C-contiguous, of the result's shape and dtype,
not overlapping an input unless elementwise) and returns the result. Wrong kinds raise TypeError, wrong shapes and layouts ValueError.
Subnormal numbers are kept, but for the updates and the loss, which flush them to zero as training does. Results do not depend on the number of threads nor on an element's position.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np

from . import _core, arrays
from .losses import CrossEntropyLoss

A = _core.ACTIVATIONS
ALPHA = {"leaky_relu": 0.01, "elu": 1.0}
DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def _array(name: str, value: Any, ndim: int | None, dtype: np.dtype | None = None) -> np.ndarray:
    array = value if type(value) is np.ndarray else arrays.real(name, value)
    if array.dtype not in DTYPES:
        raise TypeError(f"{name} must be float32 or float64, got {arrays.describe(array)}")
    if dtype is not None and array.dtype != dtype:
        raise TypeError(f"{name} must be {dtype} like the other arguments, got {arrays.describe(array)}")
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimension{'s' * (ndim != 1)}, got {arrays.describe(array)}")
    return array


def _contiguous(array: np.ndarray) -> np.ndarray:
    flags = array.flags
    if flags.c_contiguous and flags.aligned and array.dtype.isnative:
        return array
    return arrays.convert(array, array.dtype.newbyteorder("="))


def _strided(array: np.ndarray) -> np.ndarray:
    """A matrix that the product reads where it lies (contiguous rows or columns), copied only when it is neither."""
    size = array.itemsize
    usable = array.dtype.isnative and array.flags.aligned and all(s >= 0 and s % size == 0 for s in array.strides) and size in array.strides
    return array if usable else _contiguous(array)


def _out(out: Any, shape: tuple[int, ...], dtype: np.dtype, *inputs: np.ndarray, elementwise: bool = False, name: str = "out") -> np.ndarray:
    if out is None:
        return np.empty(shape, dtype.newbyteorder("="))
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array, got {arrays.describe(out)}")
    if out.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {arrays.describe(out)}")
    if out.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {arrays.describe(out)}")
    if not out.flags.c_contiguous or not out.flags.aligned or not out.dtype.isnative:
        raise ValueError(f"{name} must be C-contiguous, aligned and of native byte order")
    if not out.flags.writeable:
        raise ValueError(f"{name} must be writable, got a read-only array")
    for array in inputs:
        same = elementwise and array.ctypes.data == out.ctypes.data and array.strides == out.strides
        if not same and np.may_share_memory(out, array):
            raise ValueError(f"{name} must not overlap an input")
    return out


def _agree(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {arrays.describe(array)}")


def _product(a_name: str, a: Any, b_name: str, b: Any, out: np.ndarray | None, **epilogue: Any) -> np.ndarray:
    """What _core.plain_product has left: arguments to convert, or to complain of."""
    a = _array(a_name, a, 2)
    b = _array(b_name, b, 2, a.dtype)
    _agree(b_name, b, (a.shape[1], b.shape[1]))
    out = _out(out, (a.shape[0], b.shape[1]), a.dtype, a, b)
    return _core.matmul(_strided(a), _strided(b), out, **epilogue)


def matmul(a: Any, b: Any, out: np.ndarray | None = None) -> np.ndarray:
    """a (m, k) b (k, n) -> (m, n). Transposed views are read where they lie. Each element is one chain of multiply-adds in ascending k."""
    if (result := _core.plain_product(a, b, out)) is not None:
        return result
    return _product("a", a, "b", b, out)


def linear_forward(x: Any, w: Any, b: Any = None, activation: str | None = None, out: np.ndarray | None = None) -> np.ndarray:
    """f(x wᵀ + b), with x (B, I), w (O, I), b (O) or None -> (B, O).

    activation: None, "relu", "sigmoid", "tanh", "elu", "leaky_relu" (slope 0.01), "softplus", "gelu", "silu" or "exp".
    """
    function = activation or "identity"
    if function not in A:
        raise ValueError(f"activation must be None or one of {', '.join(map(repr, A))}, got {activation!r}")
    act, alpha = A[function], ALPHA.get(function, 0.0)
    if type(w) is np.ndarray and (result := _core.plain_product(x, w.T, out, b, act, alpha)) is not None:
        return result
    x = _array("x", x, 2)
    w = _array("w", w, 2, x.dtype)
    _agree("w", w, (w.shape[0], x.shape[1]))
    if b is not None:
        b = _array("b", b, 1, x.dtype)
        _agree("b", b, (w.shape[0],))
        if out is not None and np.may_share_memory(out, b):
            raise ValueError("out must not overlap an input")
        b = _contiguous(b)
    return _product("x", x, "w", w.T, out, bias=b, act=act, alpha=alpha)


def linear_backward(x: Any, w: Any, dy: Any, out: tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None] | None = None
                    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dx = dy w (B, I), dw = dyᵀ x (O, I), db = 1ᵀ dy (O): docs/by-hand BP2 to BP4. out: a triple of arrays or Nones."""
    if out is not None and (not isinstance(out, tuple | list) or len(out) != 3):
        raise TypeError(f"out must be three arrays or Nones, got {arrays.describe(out)}")
    dx, dw, db = out or (None, None, None)
    if (result := _core.plain_backward(x, w, dy, dx, dw, db)) is not None:
        return result
    x = _array("x", x, 2)
    w = _array("w", w, 2, x.dtype)
    dy = _array("dy", dy, 2, x.dtype)
    _agree("w", w, (w.shape[0], x.shape[1]))
    _agree("dy", dy, (x.shape[0], w.shape[0]))
    given = {i: array for i, array in enumerate(out or ()) if isinstance(array, np.ndarray)}
    for i, j in combinations(given, 2):
        if np.may_share_memory(given[i], given[j]):
            raise ValueError(f"out[{i}] must not overlap out[{j}]")
    if dx is None:
        dx = matmul(dy, w)
    else:
        dx = _core.matmul(_strided(dy), _strided(w), _out(dx, x.shape, x.dtype, x, w, dy, name="out[0]"))
    return dx, weight_gradient(x, dy, dw), bias_gradient(dy, db)


def weight_gradient(x: Any, delta: Any, out: np.ndarray | None = None) -> np.ndarray:
    """deltaᵀ x: the sum over the rows of the outer products delta_i x_iᵀ (BP4); x (B, I), delta (B, O) -> (O, I).

    Summed in 1, 2, 4, 8 ... equal chunks of at most 512 rows, added up in order.
    """
    if (result := _core.plain_outer_products(delta, x, out)) is not None:
        return result
    delta = _array("delta", delta, 2)
    if len(x := _array("x", x, 2, delta.dtype)) != len(delta):
        _agree("delta", delta, (len(x), delta.shape[1]))
    return _product("delta", delta.T, "x", x, out, chunked=True)


def bias_gradient(delta: Any, out: np.ndarray | None = None) -> np.ndarray:
    """1ᵀ delta: column sums of delta (B, O) -> (O) (BP3), in chunks as `weight_gradient`."""
    if (result := _core.plain_sums(delta, out)) is not None:
        return result
    delta = _array("delta", delta, 2)
    out = _out(out, (delta.shape[1],), delta.dtype, delta)
    return _core.column_sums(_contiguous(delta), out)


def _forward(function: str, x: Any, out: np.ndarray | None) -> np.ndarray:
    if (result := _core.plain_forward(A[function], x, out)) is not None:
        return result
    x = _array("x", x, None)
    out = _out(out, x.shape, x.dtype, x, elementwise=True)
    return _core.map_forward(A[function], _contiguous(x), out)


def _backward(function: str, y: Any, dy: Any, out: np.ndarray | None) -> np.ndarray:
    if (result := _core.plain_derivative(A[function], y, dy, out)) is not None:
        return result
    y = _array("y", y, None)
    dy = _array("dy", dy, None, y.dtype)
    _agree("dy", dy, y.shape)
    out = _out(out, y.shape, y.dtype, y, dy, elementwise=True)
    return _core.map_backward(A[function], _contiguous(y), _contiguous(dy), out)


def relu_forward(x: Any, out: np.ndarray | None = None) -> np.ndarray:
    """max(x, 0) of any shape; NaN stays NaN."""
    return _forward("relu", x, out)


def relu_backward(y: Any, dy: Any, out: np.ndarray | None = None) -> np.ndarray:
    """dy where y > 0, else 0; y is the output (or the input: its sign is the same)."""
    return _backward("relu", y, dy, out)


def sigmoid_forward(x: Any, out: np.ndarray | None = None) -> np.ndarray:
    """1 / (1 + e^-x) of any shape."""
    return _forward("sigmoid", x, out)


def sigmoid_backward(y: Any, dy: Any, out: np.ndarray | None = None) -> np.ndarray:
    """dy y (1 - y), y the output (docs/by-hand S11)."""
    return _backward("sigmoid", y, dy, out)


def tanh_forward(x: Any, out: np.ndarray | None = None) -> np.ndarray:
    """tanh x of any shape."""
    return _forward("tanh", x, out)


def tanh_backward(y: Any, dy: Any, out: np.ndarray | None = None) -> np.ndarray:
    """dy (1 - y²), y the output."""
    return _backward("tanh", y, dy, out)


def exp(x: Any, out: np.ndarray | None = None) -> np.ndarray:
    """e^x of any shape."""
    return _forward("exp", x, out)


def softmax(s: Any, out: np.ndarray | None = None) -> np.ndarray:
    """Softmax of the rows of s (B, C)."""
    if (result := _core.plain_softmax(s, out)) is not None:
        return result
    s = _array("s", s, 2)
    if s.shape[1] == 0:
        raise ValueError(f"s must have at least one column, got {arrays.describe(s)}")
    out = _out(out, s.shape, s.dtype, s, elementwise=True)
    return _core.softmax(_contiguous(s), out)


@lru_cache(64)
def _cross_entropy(classes: int) -> tuple[CrossEntropyLoss, _core.LossRule]:
    loss = CrossEntropyLoss()
    return loss, loss.rule(classes)


def softmax_cross_entropy(s: Any, labels: Any, out: np.ndarray | None = None) -> tuple[float, np.ndarray]:
    """(mean over rows of logsumexp(s) - s_y, its gradient (softmax(s) - onehot(y)) / B), with s (B, C) and integer labels (B).

    labels may also be probabilities (B, C). `out` receives the gradient.
    """
    s = _array("s", s, 2)
    if s.shape[0] == 0 or s.shape[1] == 0:
        raise ValueError(f"s must have at least one row and one column, got {arrays.describe(s)}")
    loss, rule = _cross_entropy(s.shape[1])
    t, label = loss.target("labels", labels, *s.shape, s.dtype)
    out = _out(out, s.shape, s.dtype, s, elementwise=True)
    if t is not None and np.may_share_memory(out, t):
        raise ValueError("out must not overlap labels")
    return rule.value(_contiguous(s), t, label, None, out), out


def _state(name: str, array: Any, param: np.ndarray) -> np.ndarray:
    if isinstance(array, np.ndarray):
        array = _array(name, array, None, param.dtype)
    return _out(array, param.shape, param.dtype, name=name)   # a list, say, would be changed in a copy


def _update(kind: str, numbers: dict[str, Any], lr: float, step: int, param: Any, grad: Any, **states: Any) -> np.ndarray:
    """What _core.plain_sgd and plain_adam have left: arrays to convert, or to complain of."""
    param = _array("param", param, None)
    _out(param, param.shape, param.dtype, name="param")
    grad = _array("grad", grad, None, param.dtype)
    _agree("grad", grad, param.shape)
    states = {name: _state(name, array, param) for name, array in states.items() if array is not None}
    held = {"param": param, "grad": grad} | states
    for one, other in combinations(held, 2):
        if np.may_share_memory(held[one], held[other]):
            raise ValueError(f"{one} must not overlap {other}, got arrays that share memory")
    rule = _core.UpdateRule(kind, [(0, param.size, 1.0, 1.0)], **numbers)
    rule.step(lr, step, _contiguous(grad), param, *states.values(), *[None] * (2 - len(states)))
    return param


def sgd_update(param: Any, grad: Any, lr: float, velocity: Any = None, momentum: float = 0.0, weight_decay: float = 0.0) -> np.ndarray:
    """In place: g = grad + weight_decay param;  velocity = momentum velocity + g;  param -= lr velocity; without velocity
    param -= lr g (PyTorch's form). Returns param. momentum needs a velocity."""
    if (result := _core.plain_sgd(param, grad, velocity, lr, momentum, weight_decay)) is not None:
        return result
    lr = arrays.number("lr", lr, low=0)
    momentum = arrays.number("momentum", momentum, low=0, high=1, open_high=True)
    weight_decay = arrays.number("weight_decay", weight_decay, low=0)
    if momentum and velocity is None:
        raise ValueError(f"velocity must be an array of param's shape when momentum is {momentum}, got None")
    return _update("sgd", {"momentum": momentum, "weight_decay": weight_decay}, lr, 1, param, grad, velocity=velocity)


def adam_update(param: Any, grad: Any, m: Any, v: Any, step: int, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
                eps: float = 1e-8, weight_decay: float = 0.0) -> np.ndarray:
    """In place, step counted from 1: g = grad + weight_decay param;  m = β1 m + (1-β1) g;  v = β2 v + (1-β2) g²;
    param -= lr/(1-β1^step) m / (√v/√(1-β2^step) + eps). Returns param."""
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise TypeError(f"betas must be a pair of numbers, got {arrays.describe(betas)}")
    if (result := _core.plain_adam(param, grad, m, v, step, lr, *betas, eps, weight_decay)) is not None:
        return result
    lr, step = arrays.number("lr", lr, low=0), arrays.integer("step", step, least=1)
    betas = tuple(arrays.number(f"betas[{i}]", beta, low=0, high=1, open_high=True) for i, beta in enumerate(betas))
    eps = arrays.number("eps", eps, low=0, open_low=True)
    weight_decay = arrays.number("weight_decay", weight_decay, low=0)
    if m is None or v is None:
        m, v = _array("m", m, None), _array("v", v, None)
    return _update("adam", {"betas": betas, "eps": eps, "weight_decay": weight_decay}, lr, step, param, grad, m=m, v=v)
