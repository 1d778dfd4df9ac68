"""The machine: threads, instruction set, build."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from . import _core, arrays

MAX_THREADS = 1024


def _thread_count(name: str, n: int) -> int:
    count = arrays.integer(name, n, least=1)
    if count > MAX_THREADS:
        raise ValueError(f"{name} must be at most {MAX_THREADS}, got {n}")
    return count


def set_num_threads(n: int) -> None:
    """Let every call of this process use at most n threads, 1 <= n <= 1024. Small work uses fewer; results do not depend on it."""
    _core.set_thread_limit(_thread_count("n", n))


def get_num_threads() -> int:
    """The most threads that a call from this thread may use now.

    The first of: an enclosing `num_threads(n)`; `set_num_threads`, or FASTBP_NUM_THREADS at import; the least of OpenMP's own limit
    (OMP_NUM_THREADS), the processors this process may run on, and the container's quota. 1 in a forked child.
    """
    return 1 if _core.forked() else _core.thread_limit()


@contextmanager
def num_threads(n: int) -> Iterator[None]:
    """`with num_threads(n):` calls from this thread use at most n threads, 1 <= n <= 1024."""
    old = _core.set_own_thread_limit(_thread_count("n", n))
    try:
        yield
    finally:
        _core.set_own_thread_limit(old)


def config() -> dict[str, str | int | list[str]]:
    """What `show_config` prints, as data."""
    return {
        "version": _core.version(),
        "compiler": _core.compiler(),
        "instruction set": _core.isa(),
        "instruction sets available": [name for name, supported in _core.isas() if supported],
        "threads": get_num_threads(),
        "OpenMP": _core.openmp_version() or "no: built without, everything runs on one thread",
    }


def show_config() -> None:
    """Prints version, compiler, instruction set in use and those available, threads, OpenMP (its version as year and month)."""
    for key, value in config().items():
        print(f"{key + ':':<28}{', '.join(value) if isinstance(value, list) else value}")


def fma_rate(seconds: float = 0.05, dtype: str = "float32") -> float:
    """Operations per second (2 per multiply-add) of this thread's core with all operands in registers, probed for `seconds`: what no
    matrix product can surpass."""
    return _core.peak(arrays.dtype_of(dtype), arrays.number("seconds", seconds, low=0, open_low=True))


def _from_environment() -> None:
    """FASTBP_ISA and FASTBP_NUM_THREADS, once, at import. ImportError names what is wrong."""
    name = os.environ.get("FASTBP_ISA") or None
    if (status := _core.select_isa(name)) != 0:
        known = ", ".join(f"{isa}{'' if supported else ' (not on this machine)'}" for isa, supported in _core.isas())
        raise ImportError(f"FASTBP_ISA={name!r} is {'unknown' if status == -1 else 'not supported by this machine'}; this build has: {known}")
    if threads := os.environ.get("FASTBP_NUM_THREADS"):
        if not re.fullmatch("[0-9]{1,9}", threads) or not 1 <= int(threads) <= MAX_THREADS:
            raise ImportError(f"FASTBP_NUM_THREADS must be an integer from 1 to {MAX_THREADS}, got {threads!r}")
        _core.set_thread_limit(int(threads))


class InUse:
    """The mark of a model that is being trained: a second user gets RuntimeError. A forked child does not inherit it."""

    def __init__(self) -> None:
        self._lock, self._process = threading.Lock(), os.getpid()

    def __enter__(self) -> None:
        if self._process != os.getpid():
            self._lock, self._process = threading.Lock(), os.getpid()
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("this model is being trained already: one fit at a time")

    def __exit__(self, *error: object) -> None:
        self._lock.release()


_from_environment()
