"""The machine's limits at this moment, as the library's own probes measure them; None where it has no such probe."""

from concurrent.futures import ThreadPoolExecutor

from fastbp import runtime


def fma_rate(seconds, dtype):
    """Peak of fused multiply-adds, flop/s of all threads at once: a core that is not really there lowers it."""
    return _on_all_threads("fma_rate", seconds, dtype)


def bandwidth(seconds, dtype):
    """Memory bandwidth, bytes/s of all threads at once."""
    return _on_all_threads("bandwidth", seconds, dtype)


def configuration():
    """What `fastbp.show_config` prints but the number of threads, which differs by contestant, on one line."""
    return ", ".join(f"{name} {' '.join(value) if isinstance(value, list) else value}"
                     for name, value in runtime.config().items() if name != "threads")


def _on_all_threads(name, *arguments):
    probe, threads = getattr(runtime, name, None), runtime.get_num_threads()
    if probe is None:
        return None
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(lambda _: probe(*arguments), range(threads)))
