"""What a graph costs: ``python -m bench.graphs``, from the repository's root.

A residual net beside the chain of the same layers, in turns; and cosh, sinh and tanh of a million numbers from exponentials (docs/by-hand S3)
beside NumPy's expressions, as one writes them and into arrays that are there already. Minima of the turns; ratios: medians over the turns.
"""

import time

import numpy as np

import fastbp as fb

TURNS, STEPS = 15, 50


def main():
    for threads in (1, 2):
        fb.set_num_threads(threads)
        for batch in (32, 128):
            chain, residual = turns([training(deep(skips), batch) for skips in (False, True)])
            print(f"threads {threads}, batch {batch:3}: chain 64-256x8-10 {chain.min() / STEPS * 1e6:6.0f} us a step, with skips "
                  f"{residual.min() / STEPS * 1e6:6.0f}, speed {np.median(chain / residual):.1%} of the chain's")
        x = np.random.default_rng(0).uniform(-3, 3, (1_000_000, 1)).astype(np.float32)
        model = hyperbolic_functions()
        error = max((np.abs(ours - exact) / np.maximum(1, np.abs(exact))).max() for ours, exact in zip(model.predict(x), (np.cosh(x), np.sinh(x), np.tanh(x)), strict=True))
        ours, written, prepared = turns([lambda: model.predict(x), lambda: expressions(x), prepared_expressions(x)])
        print(f"threads {threads}, S3 over 10^6: fastbp {ours.min() * 1e3:.2f} ms; NumPy's expressions {written.min() * 1e3:.2f} ms, ratio "
              f"{np.median(written / ours):.2f}; into arrays that are there {prepared.min() * 1e3:.2f} ms, ratio {np.median(prepared / ours):.2f}; error {error:.0e}")


def turns(calls):
    """Seconds of each call, taking turns"""
    times = [[] for _ in calls]
    for _ in range(TURNS):
        for call, seconds in zip(calls, times, strict=True):
            begin = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - begin)
    return np.array(times)


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


def hyperbolic_functions():
    x = fb.Input(1)
    up, down = fb.exp(x), fb.exp(-x)
    cosh, sinh = 0.5 * (up + down), 0.5 * (up - down)
    return fb.Model(x, [cosh, sinh, sinh / cosh])


def expressions(x):
    cosh, sinh = 0.5 * (np.exp(x) + np.exp(-x)), 0.5 * (np.exp(x) - np.exp(-x))
    return cosh, sinh, sinh / cosh


def prepared_expressions(x):
    """The same with each exponential computed once and no array made"""
    up, down, cosh, sinh, tanh, half = *(np.empty_like(x) for _ in range(5)), np.float32(0.5)

    def run():
        np.exp(x, out=up)
        np.exp(np.negative(x, out=down), out=down)
        np.multiply(half, np.add(up, down, out=cosh), out=cosh)
        np.multiply(half, np.subtract(up, down, out=sinh), out=sinh)
        np.divide(sinh, cosh, out=tanh)

    return run


if __name__ == "__main__":
    main()
