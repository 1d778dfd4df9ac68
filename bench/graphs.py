"""What a graph costs: ``python -m bench.graphs``, from the repository's root.

A residual net beside the chain of the same layers, in turns; and cosh, sinh and tanh of a million numbers from exponentials (docs/by-hand S3)
beside NumPy's expressions. Minima of the turns.
"""

import time

import numpy as np

import fastbp as fb

TURNS, STEPS = 15, 50


def main():
    for threads in (1, 2):
        fb.set_num_threads(threads)
        for batch in (32, 128):
            chain, residual = minima([training(deep(skips), batch) for skips in (False, True)])
            print(f"threads {threads}, batch {batch:3}: chain 64-256x8-10 {chain / STEPS * 1e6:6.0f} us a step, with skips {residual / STEPS * 1e6:6.0f}, "
                  f"speed {chain / residual:.1%} of the chain's")
        x = np.random.default_rng(0).normal(size=(10_000, 100)).astype(np.float32)
        model = hyperbolic_tangent()
        error = np.abs(model.predict(x) - np.tanh(x)).max()
        ours, numpy = minima([lambda: model.predict(x), expressions(x)])
        print(f"threads {threads}, S3 over 10^6: fastbp {ours * 1e3:.2f} ms, NumPy {numpy * 1e3:.2f} ms, ratio {numpy / ours:.2f}, error {error:.0e}")


def minima(calls):
    """Seconds of each, taking turns"""
    times = [[] for _ in calls]
    for _ in range(TURNS):
        for call, seconds in zip(calls, times, strict=True):
            begin = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - begin)
    return [min(seconds) for seconds in times]


def deep(skips):
    x = fb.Input(64)
    h = fb.relu(fb.Linear(64, 256)(x))
    for _ in range(7):
        y = fb.relu(fb.Linear(256, 256)(h))
        h = h + y if skips else y
    return fb.Model(x, fb.Linear(256, 10)(h), seed=0)


def training(model, batch):
    rng, optimizer = np.random.default_rng(0), fb.SGD(lr=1e-4)
    x, y = (rng.normal(size=(batch * STEPS, width)).astype(np.float32) for width in (64, 10))
    return lambda: model.fit(x, y, loss=fb.MSELoss(), optimizer=optimizer, batch_size=batch, shuffle=False, progress=False)


def hyperbolic_tangent():
    x = fb.Input(100)
    up, down = fb.exp(x), fb.exp(-x)
    return fb.Model(x, (0.5 * (up - down)) / (0.5 * (up + down)))


def expressions(x):
    """NumPy's, into arrays that are there already"""
    up, down, result, half = np.empty_like(x), np.empty_like(x), np.empty_like(x), np.float32(0.5)

    def run():
        np.exp(x, out=up)
        np.exp(np.negative(x, out=down), out=down)
        np.multiply(half, np.subtract(up, down, out=result), out=result)
        np.multiply(half, np.add(up, down, out=up), out=up)
        np.divide(result, up, out=result)

    return run


if __name__ == "__main__":
    main()
