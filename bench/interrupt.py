"""How soon Ctrl-C reaches the caller of `fit`: ``python -m bench.interrupt``, from the repository's root.

A child process trains a net of ten million parameters on batches of 32 and gets SIGINT at a random moment; the time until
KeyboardInterrupt arrives is compared with 100 ms or one step, whichever is longer. Afterwards the parameters must be finite and the
next fit must work. Exit status 1 if the 99th percentile is above the bound.
"""

import argparse
import os
import signal
import sys
import threading
import time

import fastbp as fb
import numpy as np

WIDTH, BATCH, BOUND = 1825, 32, 0.1


def main():
    parser = argparse.ArgumentParser(prog="python -m bench.interrupt", description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=50)
    times = parser.parse_args().times
    model = fb.Sequential(fb.Linear(WIDTH, WIDTH), fb.ReLU(), fb.Linear(WIDTH, WIDTH), fb.ReLU(), fb.Linear(WIDTH, WIDTH), seed=0)
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(64 * BATCH, WIDTH)).astype(np.float32) for _ in range(2))
    optimizer = fb.SGD(lr=1e-3)

    def train(steps):
        model.fit(x[: steps * BATCH], y[: steps * BATCH], loss=fb.MSELoss(), optimizer=optimizer, epochs=1, batch_size=BATCH)

    train(4)
    begin = time.perf_counter()
    train(16)
    step = (time.perf_counter() - begin) / 16

    delays = []
    for _ in range(times):
        sent = []

        def interrupt(after):
            time.sleep(after)
            sent.append(time.perf_counter())
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt, args=(rng.uniform(0.02, 0.3),))
        thread.start()
        try:
            while True:
                train(64)
        except KeyboardInterrupt:
            delays.append(time.perf_counter() - sent[0])
        thread.join()
        if not np.isfinite(model.flat_parameters).all():
            sys.exit("a parameter is not finite after the interrupt")
    train(1)
    p99, bound = float(np.quantile(delays, 0.99)), max(BOUND, step)
    print(f"{model.flat_parameters.size:,} parameters, one step {step * 1e3:.0f} ms; {times} interrupts: median {np.median(delays) * 1e3:.0f} ms, "
          f"99th percentile {p99 * 1e3:.0f} ms, most {max(delays) * 1e3:.0f} ms; bound {bound * 1e3:.0f} ms")
    return p99 > bound


if __name__ == "__main__":
    sys.exit(main())
