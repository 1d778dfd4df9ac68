"""Initial values of weights and biases.

An initialiser is a function ``(rng, shape) -> array`` with ``shape = (out, in)``, the shape of ``Linear.weight``. The
ones below have names; a caller's own function is used the same way. Values are drawn in float64 and rounded once, by
the caller, to the model's dtype: a float32 and a float64 model with one seed start from the same numbers.

=================  =================  ============================================
name               weight             source
=================  =================  ============================================
"default"          U(±1/√in)          torch.nn.Linear: kaiming_uniform with a = √5
"xavier_uniform"   U(±√(6/(in+out)))  Glorot & Bengio 2010, gain 1
"xavier_normal"    N(0, 2/(in+out))   Glorot & Bengio 2010, gain 1
"kaiming_uniform"  U(±√(6/in))        He et al. 2015: gain √2 (ReLU), fan_in
"kaiming_normal"   N(0, 2/in)         He et al. 2015: gain √2 (ReLU), fan_in
"zeros"            0
=================  =================  ============================================

The bias is U(-1/√in, 1/√in) with "default", as in torch.nn.Linear, and **zero with every other initialiser**, callables
included: that is what the papers prescribe and what PyTorch's users do by hand after ``torch.nn.init.xavier_uniform_``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["INITIALISERS", "Initialiser", "bias", "validate", "weight"]

Initialiser = str | Callable[[np.random.Generator, tuple[int, ...]], ArrayLike]
_Array = NDArray[np.float64]


def _fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight (out, in)."""
    if len(shape) != 2:
        raise ValueError(f"init: a named initialiser other than 'zeros' needs a shape (out, in), got {shape}")
    fan_out, fan_in = shape
    return fan_in, fan_out


def _default(rng: np.random.Generator, shape: tuple[int, ...]) -> _Array:
    bound = 1 / math.sqrt(max(_fans(shape)[0], 1))
    return rng.uniform(-bound, bound, shape)


def _xavier_uniform(rng: np.random.Generator, shape: tuple[int, ...]) -> _Array:
    bound = math.sqrt(6 / max(sum(_fans(shape)), 1))
    return rng.uniform(-bound, bound, shape)


def _xavier_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> _Array:
    return rng.normal(0.0, math.sqrt(2 / max(sum(_fans(shape)), 1)), shape)


def _kaiming_uniform(rng: np.random.Generator, shape: tuple[int, ...]) -> _Array:
    bound = math.sqrt(6 / max(_fans(shape)[0], 1))
    return rng.uniform(-bound, bound, shape)


def _kaiming_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> _Array:
    return rng.normal(0.0, math.sqrt(2 / max(_fans(shape)[0], 1)), shape)


def _zeros(rng: np.random.Generator, shape: tuple[int, ...]) -> _Array:
    return np.zeros(shape)


INITIALISERS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], _Array]] = {
    "default": _default,
    "xavier_uniform": _xavier_uniform,
    "xavier_normal": _xavier_normal,
    "kaiming_uniform": _kaiming_uniform,
    "kaiming_normal": _kaiming_normal,
    "zeros": _zeros,
}


def validate(init: Initialiser) -> None:
    """Raise ValueError for an unknown name, TypeError for what is neither a name nor callable."""
    if isinstance(init, str):
        if init not in INITIALISERS:
            known = ", ".join(map(repr, INITIALISERS))
            raise ValueError(f"init must be one of {known} or a callable(rng, shape), got {init!r}")
    elif not callable(init):
        raise TypeError(f"init must be a name or a callable(rng, shape), got {type(init).__name__}: {init!r}")


def weight(init: Initialiser, rng: np.random.Generator, shape: tuple[int, ...]) -> _Array:
    """Draw a weight: a new C-contiguous float64 array of `shape`, (out, in) for a Linear.

    Raises as `validate` does; MemoryError when `shape` cannot be had; for a callable, TypeError when it returns
    something not real and ValueError when it returns another shape or a value that is not finite.
    """
    validate(init)
    if math.prod(shape) > sys.maxsize // np.dtype(np.float64).itemsize:
        raise MemoryError(f"init: an array of shape {shape} does not fit in memory")
    if isinstance(init, str):
        return INITIALISERS[init](rng, shape)
    return _checked(init(rng, shape), shape)


def bias(init: Initialiser, rng: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> _Array:
    """Draw a bias of `shape` (out,): U(-1/√fan_in, 1/√fan_in) for "default", zeros for everything else.

    `fan_in` is the layer's number of inputs. Raises as `validate` does.
    """
    validate(init)
    if isinstance(init, str) and init == "default":
        bound = 1 / math.sqrt(max(fan_in, 1))
        return rng.uniform(-bound, bound, shape)
    return np.zeros(shape)


def _checked(values: ArrayLike, shape: tuple[int, ...]) -> _Array:
    """What a caller's initialiser returned, as float64, or the error that says what is wrong with it."""
    given = np.asarray(values)
    if given.dtype.kind not in "fiu":
        raise TypeError(f"init must return real numbers, got an array of dtype {given.dtype}")
    if given.shape != tuple(shape):
        raise ValueError(f"init must return an array of shape {tuple(shape)}, got shape {given.shape}")
    with np.errstate(over="ignore"):
        array = np.array(given, dtype=np.float64, order="C")
    finite = np.isfinite(array)
    if not finite.all():
        index = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise ValueError(f"init must return finite numbers, got {array[index]} at index {index}")
    return array
