"""Checks and conversions of what callers hand in: once, at the entry. Below this gate arrays are C-contiguous and of the model's dtype.

Every error names the argument, what was given and what was expected.
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np

from . import _core

ALIGNMENT = 64


def dtype_of(dtype: Any) -> np.dtype:
    """np.float32 or np.float64 as a dtype; TypeError for anything else."""
    try:
        given = np.dtype(dtype)
    except TypeError:
        given = None
    if given not in (np.float32, np.float64):
        raise TypeError(f"dtype must be 'float32' or 'float64', got {dtype!r}")
    return given


def describe(value: Any) -> str:
    """'a float64 array of shape (3, 4)', or the type and value of what is no array."""
    if isinstance(value, np.ndarray):
        return f"a {value.dtype} array of shape {value.shape}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def aligned_zeros(size: int, dtype: np.dtype) -> np.ndarray:
    """A 1-D array of zeros that starts at a multiple of 64 bytes; MemoryError when it cannot be had."""
    itemsize = np.dtype(dtype).itemsize
    if size > (np.iinfo(np.intp).max - ALIGNMENT) // itemsize:
        raise MemoryError(f"{size} values of {itemsize} bytes do not fit in memory")
    raw = np.zeros(size * itemsize + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size * itemsize].view(dtype)


def real(name: str, value: Any) -> np.ndarray:
    """`value` as an array of real numbers of its own dtype; TypeError for objects, strings, complex numbers, dates."""
    try:
        array = np.asarray(value)
    except ValueError as error:   # ragged nested sequences
        raise ValueError(f"{name} must be a rectangular array of numbers, got {describe(value)}: {error}") from None
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must hold real numbers, got {describe(array if isinstance(value, np.ndarray) else value)} of dtype {array.dtype}")
    return array


def convert(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """C-contiguous, aligned, native; the same object when it already is. Values beyond float32's range become infinite."""
    with np.errstate(over="ignore"):
        return np.require(array, dtype, ("C", "A"))


def matrix(name: str, value: Any, dtype: np.dtype, *, columns: int | None = None, rows: int | None = None) -> np.ndarray:
    """`value` as (rows, columns) of `dtype`. Raises TypeError for a wrong kind, ValueError for a wrong shape."""
    array = real(name, value)
    expected = f"({'rows' if rows is None else rows}, {'features' if columns is None else columns})"
    if array.ndim != 2 or (columns is not None and array.shape[1] != columns) or (rows is not None and array.shape[0] != rows):
        raise ValueError(f"{name} must have shape {expected}, got {describe(array)}")
    if array.shape[1] == 0:
        raise ValueError(f"{name} must have at least one column, got {describe(array)}")
    return convert(array, dtype)


def vector(name: str, value: Any, dtype: np.dtype, size: int) -> np.ndarray:
    """`value` as (size,) of `dtype`."""
    array = real(name, value)
    if array.shape != (size,):
        raise ValueError(f"{name} must have shape ({size},), got {describe(array)}")
    return convert(array, dtype)


def sample_weight(value: Any, dtype: np.dtype, rows: int) -> np.ndarray | None:
    """One finite, non-negative weight per row, not all zero; None stays None."""
    if value is None:
        return None
    weight = vector("sample_weight", value, dtype, rows)
    bad = ~(np.isfinite(weight) & (weight >= 0))
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(f"sample_weight must be finite and not negative, got {weight[row]} in row {row}")
    if rows and not weight.any():
        raise ValueError("sample_weight must have a positive sum, got only zeros")
    return weight


def labels(name: str, array: np.ndarray, rows: int, classes: int) -> np.ndarray:
    """Class labels (rows,) as a new int64 array within [0, classes): new, because a label changed later would send C out of bounds."""
    if array.shape != (rows,):
        raise ValueError(f"{name} must have shape ({rows},), got {describe(array)}")
    wrong = (array < 0) | (array >= classes)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(f"{name} must hold labels from 0 to {classes - 1}, got {array[row]} in row {row}")
    return np.array(array, np.int64, order="C")


def require_finite(name: str, array: np.ndarray | None) -> None:
    """ValueError with row and column of the first NaN or infinity."""
    if array is None or array.dtype.kind != "f" or array.size == 0:
        return
    at = _core.first_nonfinite(array)
    if at >= 0:
        value = array.reshape(-1)[at]
        where = f"row {at}" if array.ndim == 1 else f"row {at // array.shape[1]}, column {at % array.shape[1]}"
        raise ValueError(f"{name} must be finite, got {value} in {where}")


def integer(name: str, value: Any, *, least: int) -> int:
    """A Python int of at least `least`; TypeError for what is no integer (True and 3.0 included)."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {describe(value)}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def number(name: str, value: Any, *, low: float = -np.inf, high: float = np.inf, open_low: bool = False, open_high: bool = False) -> float:
    """A finite Python float between low and high; TypeError for what is no real number."""
    if type(value) is float and -np.inf < value < high and (low < value or (low == value and not open_low)):   # the common case
        return value
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {describe(value)}")
    within = (low < value if open_low else low <= value) and (value < high if open_high else value <= high)
    if not within or not np.isfinite(value):
        left, right = "(" if open_low or low == -np.inf else "[", ")" if open_high or high == np.inf else "]"
        raise ValueError(f"{name} must be a finite number in {left}{low:g}, {high:g}{right}, got {value!r}")
    return float(value)


def flag(name: str, value: Any) -> bool:
    """True or False; TypeError for anything else."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {describe(value)}")
    return bool(value)


def generator(seed: Any, name: str = "seed") -> np.random.Generator:
    """A numpy Generator: the given one itself, or a new one from an int or None."""
    if seed is None or isinstance(seed, np.random.Generator):
        return np.random.default_rng(seed)
    return np.random.default_rng(integer(name, seed, least=0))
