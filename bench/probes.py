"""The machine's limits at this moment: the peak of arithmetic by the library's own probe, the bandwidth by NumPy."""

import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
from fastbp import runtime

_STREAM = 2**24  # bytes of an array: beyond the caches of a core


def fma_rate(seconds, dtype):
    """Peak of fused multiply-adds, flop/s of all threads at once: a core that is not really there lowers it."""
    return _on_all_threads(lambda worker: runtime.fma_rate(seconds, dtype))


def bandwidth(seconds, dtype):
    """Bytes/s of all threads at once, each adding one large array to another: two reads and a write, as a plain SGD step."""
    return _on_all_threads(lambda worker: _stream(worker, seconds))


@cache
def _arrays(worker):
    return np.ones(_STREAM // 4, np.float32), np.zeros(_STREAM // 4, np.float32)


def _stream(worker, seconds):
    one, total = _arrays(worker)
    passes, start = 0, time.perf_counter()
    while passes == 0 or time.perf_counter() - start < seconds:
        np.add(total, one, total)
        passes += 1
    return 3 * _STREAM * passes / (time.perf_counter() - start)


def configuration():
    """What `fastbp.show_config` prints but the number of threads, which differs by contestant, on one line."""
    return ", ".join(f"{name} {' '.join(value) if isinstance(value, list) else value}"
                     for name, value in runtime.config().items() if name != "threads")


def _on_all_threads(probe):
    threads = runtime.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(probe, range(threads)))
