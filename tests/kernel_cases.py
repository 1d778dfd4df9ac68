"""What the tests of the kernels share: instruction sets, seam sizes, teams of threads, arrays at chosen addresses."""
import ctypes
import ctypes.util
import re
import warnings
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import mpmath as mp
import numpy as np
import pytest

import fastbp as fb
from fastbp import _core

# --- instruction sets ---------------------------------------------------------------------------------------

ISAS = [name for name, supported in _core.isas() if supported]
FUSED = [name for name in ISAS if name != "baseline"]  # they have FMA and agree bit for bit; baseline rounds twice
_TILE = {"avx512": (12, 64), "wide": (12, 64), "avx2": (6, 32), "baseline": (6, 16), "neon": (12, 16)}  # rows, bytes of a vector


@contextmanager
def selected(name):
    """Everything called or compiled inside runs on this instruction set"""
    before = _core.isa()
    assert _core.select_isa(name) == 0
    try:
        yield
    finally:
        _core.select_isa(before)


@pytest.fixture(params=ISAS)
def isa(request):
    with selected(request.param):
        yield request.param


def _source(file, pattern):
    """A number that the kernels' source gives"""
    return int(re.search(pattern, (Path(__file__).resolve().parents[1] / "csrc" / "kernels" / file).read_text())[1])


CHUNK = _source("table.h", r"FBP_CHUNK = (\d+)")  # most rows of a batch that make one sum


def chunk_of(rows):
    """Rows of this many that make one sum: 1, 2, 4, 8 ... sums of as many rows"""
    chunks = 1
    while chunks * CHUNK < rows:
        chunks *= 2
    return -(-rows // chunks)


_BLOCKS = {wide: (_source("pack.inc.c", pattern + r"DEPTH = (\d+) / sizeof"), _source("pack.inc.c", pattern + r"DEPTH[^\n]*NC = (\d+)"),
                  1024 * _source("pack.inc.c", pattern + r"DEPTH[^\n]*A_BYTES = (\d+) << 10"))
           for wide, pattern in [(True, r"VBYTES == 64\nenum \{ "), (False, r"#else\nenum \{ ")]}


def tile(isa, dtype):
    """MR x NR register tile of vectors of VL lanes; cache blocks KC deep with MC rows of A; rows of A that are PAGE elements apart are copied"""
    rows, width = _TILE[isa]
    size = np.dtype(dtype).itemsize
    depth, columns, room = _BLOCKS[width == 64]
    depth //= size
    return SimpleNamespace(MR=rows, VL=width // size, NR=2 * (width // size), MC=room // size // depth // rows * rows, NC=columns, KC=depth,
                           PAGE=4096 // size)


# --- threads ------------------------------------------------------------------------------------------------

THREADS = (1, 2, 3, 7)


def for_every_number_of_threads(compute):
    """[compute()] with 1, 2, 3 and 7 threads; the one to call once per test, for OpenMP takes its time to change a team's size"""
    results = []
    for n in THREADS:
        with team(n):
            results.append(compute())
    return results


@contextmanager
def team(n):
    """Every call is divided among n threads, however small it is"""
    grain = _core._set_grain(1)
    try:
        with fb.num_threads(n):
            yield
    finally:
        _core._set_grain(grain)


# --- arrays -------------------------------------------------------------------------------------------------

CANARIES = 64  # elements: four of the widest vectors


class Framed:
    """`array`, NaN all over, between canaries of NaN; `at` is its address in bytes beyond a multiple of 64"""

    def __init__(self, shape, dtype, at=0):
        dtype = np.dtype(dtype)
        size = int(np.prod(shape))
        memory = np.empty((size + 2 * CANARIES) * dtype.itemsize + 128, np.uint8)
        start = -memory.ctypes.data % 64 + at
        self.whole = memory[start : start + (size + 2 * CANARIES) * dtype.itemsize].view(dtype)
        self.whole.fill(np.nan)
        self.array = self.whole[CANARIES : CANARIES + size].reshape(shape)

    def intact(self):
        """Whether the canaries live"""
        return bool(np.isnan(self.whole[:CANARIES]).all() and np.isnan(self.whole[-CANARIES:]).all())


def placed(values, at):
    """A copy of the array whose address is `at` bytes beyond a multiple of 64"""
    copy = Framed(values.shape, values.dtype, at).array
    copy[...] = values
    return copy


def whole_numbers(rng, *shape):
    """Non-zero whole numbers up to 8: sums of up to 2**17 products are exact in float32, and hardly ever 0"""
    return (rng.integers(1, 9, shape) * rng.choice([-1, 1], shape)).astype(np.float64)


def bits(array):
    """The array's bits as unsigned integers, every NaN the same"""
    array = np.ascontiguousarray(array)
    return np.where(np.isnan(array), np.nan, array).astype(array.dtype).view(f"u{array.itemsize}")


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and (a.tobytes() == b.tobytes() or np.array_equal(bits(a), bits(b)))


# --- exact numbers ------------------------------------------------------------------------------------------


def extended(value):
    """mpmath's number in NumPy's widest type"""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # out of its range: 0 or infinity
        return np.longdouble(mp.nstr(value, 25, min_fixed=1, max_fixed=0))


def representable(exact, dtype):
    """`exact`, infinite where it exceeds the largest number of dtype by half a unit in the last place or more"""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.where(np.isinf(np.asarray(exact).astype(dtype)), np.sign(exact) * np.inf, exact)


# --- one rounding -------------------------------------------------------------------------------------------

_libm = ctypes.CDLL(ctypes.util.find_library("m"))


def fused_multiply_add(dtype):
    """The C library's fma(a, b, c) on arrays: a b + c rounded once"""
    real, name = {"float32": (ctypes.c_float, "fmaf"), "float64": (ctypes.c_double, "fma")}[np.dtype(dtype).name]
    function = getattr(_libm, name)
    function.restype, function.argtypes = real, [real] * 3
    ufunc = np.frompyfunc(function, 3, 1)
    return lambda a, b, c: ufunc(a, b, c).astype(dtype)
