"""fastbp.sklearn beside scikit-learn: its own tests and checks, its loss curves, and what goes beyond it."""
import contextlib
import copy
import gc
import itertools
import pickle
import subprocess
import sys
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
from scipy import sparse
from sklearn import config_context, neural_network
from sklearn.base import clone
from sklearn.datasets import load_iris, make_classification, make_multilabel_classification, make_regression
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, PoissonRegressor
from sklearn.metrics import mean_pinball_loss
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.utils.estimator_checks import (
    check_sample_weight_equivalence_on_dense_data, check_sample_weight_equivalence_on_sparse_data, parametrize_with_checks,
)
from sklearn.utils.parallel import Parallel, delayed

import fastbp as fb
from fastbp.pace import Pace
from fastbp.sklearn import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
X_IRIS, Y_IRIS = load_iris(return_X_y=True)
ORIGINAL = {MLPClassifier: neural_network.MLPClassifier, MLPRegressor: neural_network.MLPRegressor}


# ---- scikit-learn's own tests --------------------------------------------------------------------------------------------------------------

def test_scikit_learns_tests_of_its_estimators_pass_with_ours():
    done = subprocess.run([sys.executable, Path(__file__).with_name("sklearn_original.py")], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout and "failed" not in done.stdout


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks([MLPClassifier(), MLPRegressor(), MLPClassifier(solver="sgd"), MLPRegressor(solver="sgd"), MLPRegressor(solver="lbfgs")])
def test_estimator_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("check", [check_sample_weight_equivalence_on_dense_data, check_sample_weight_equivalence_on_sparse_data])
@pytest.mark.parametrize("estimator", [MLPClassifier, MLPRegressor])
def test_a_weight_of_two_is_a_row_twice(estimator, check):
    check(estimator.__name__, estimator(solver="lbfgs"))


def test_constructors_have_the_originals_parameters_and_defaults():
    for ours, theirs in ORIGINAL.items():
        expected, got = theirs().get_params(), ours().get_params()
        assert expected.items() <= got.items()
        assert set(got) - set(expected) <= {"class_weight", "dropout", "clip_norm", "callbacks", "num_threads", "progress", "delta", "quantile"}


# ---- the same curves -----------------------------------------------------------------------------------------------------------------------

def data(kind, rng):
    n, features = int(rng.integers(60, 300)), int(rng.integers(1, 30))
    x = rng.normal(size=(n, features))
    hidden = np.tanh(x @ rng.normal(size=(features, 6)))
    if kind == "binary":
        return x, (hidden[:, 0] > 0).astype(int)
    if kind == "classes":
        return x, np.array(["ant", "bee", "cat", "dog"])[hidden[:, :4].argmax(axis=1)]
    if kind == "labels":
        return x, (hidden[:, :3] > 0).astype(int)
    if kind == "poisson":
        return x, rng.poisson(np.exp(hidden[:, 0])).astype(float)
    return x, hidden[:, 0] if kind == "one" else 10 * hidden[:, :3]


def configuration(number):
    """(estimator class, x, y, weights, arguments), drawn."""
    rng = np.random.default_rng(number)
    solver = ["adam", "sgd", "adam", "sgd", "lbfgs"][number % 5]
    kind = ["binary", "classes", "labels", "one", "several", "poisson"][rng.integers(6)]
    x, y = data(kind, rng)
    options = {"solver": solver, "activation": str(rng.choice(["identity", "logistic", "tanh", "relu"])), "random_state": number,
               "hidden_layer_sizes": tuple(int(width) for width in rng.integers(1, 40, rng.integers(1, 4))), "alpha": float(rng.choice([0, 1e-4, 0.1, 3])),
               "batch_size": "auto" if rng.random() < 0.3 else int(rng.integers(1, 60)), "shuffle": bool(rng.random() < 0.8), "max_iter": 12,
               "early_stopping": bool(solver != "lbfgs" and rng.random() < 0.4), "learning_rate_init": float(rng.choice([1e-4, 1e-3, 1e-2])),
               "learning_rate": str(rng.choice(["constant", "invscaling", "adaptive"])), "momentum": float(rng.choice([0, 0.5, 0.9])),
               "nesterovs_momentum": bool(rng.random() < 0.5), "beta_1": float(rng.choice([0, 0.9])), "epsilon": float(rng.choice([1e-8, 1e-2])),
               "n_iter_no_change": int(rng.integers(1, 12)), "tol": float(rng.choice([1e-4, 1e-2]))}
    if kind == "poisson":
        options["loss"] = "poisson"
    weights = rng.choice([None, "weights"])
    weights = weights and rng.uniform(0.1, 3, len(x))
    return MLPClassifier if kind in ("binary", "classes", "labels") else MLPRegressor, x, y, weights, options


@pytest.mark.parametrize("number", range(40))
def test_loss_curves_coincide(number):
    estimator, x, y, weights, options = configuration(number)
    ours, theirs = (cls(**options).fit(x, y, sample_weight=weights) for cls in (estimator, ORIGINAL[estimator]))
    assert ours.n_iter_ == theirs.n_iter_ and ours.t_ == theirs.t_
    if options["solver"] == "lbfgs":
        np.testing.assert_allclose(ours.loss_, theirs.loss_, rtol=1e-8)
    else:
        np.testing.assert_allclose(ours.loss_curve_[:10], theirs.loss_curve_[:10], rtol=1e-8)
        np.testing.assert_allclose(ours._optimizer.learning_rate, theirs._optimizer.learning_rate, rtol=1e-12)
        assert ours._no_improvement_count == theirs._no_improvement_count
        if options["early_stopping"]:
            np.testing.assert_allclose(ours.validation_scores_, theirs.validation_scores_, rtol=1e-6)
    if estimator is MLPClassifier:
        np.testing.assert_array_equal(ours.predict(x), theirs.predict(x))
        np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), rtol=1e-6, atol=1e-9)
    else:
        np.testing.assert_allclose(ours.predict(x), theirs.predict(x), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_partial_fit_and_warm_start_coincide(solver):
    x, y = X_IRIS, Y_IRIS
    models = [cls(solver=solver, random_state=np.random.RandomState(3), batch_size=7, max_iter=3, hidden_layer_sizes=(8, 5))
              for cls in (MLPClassifier, neural_network.MLPClassifier)]
    for model in models:
        model.partial_fit(x[:60], y[:60], classes=[0, 1, 2])
        model.partial_fit(x[60:], y[60:])
        model.set_params(warm_start=True).fit(x, y).fit(x, y)
        model.partial_fit(x, y)
    ours, theirs = models
    np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-9)
    assert ours.t_ == theirs.t_ and len(ours.loss_curve_) == 9
    for mine, original in zip(ours.coefs_ + ours.intercepts_, theirs.coefs_ + theirs.intercepts_, strict=True):
        assert mine.shape == original.shape and mine.dtype == original.dtype
        np.testing.assert_allclose(mine, original, rtol=1e-7, atol=1e-10)
    states = ("ms", "vs") if solver == "adam" else ("velocities",)
    for name in states:
        for mine, original in zip(getattr(ours._optimizer, name), getattr(theirs._optimizer, name), strict=True):
            np.testing.assert_allclose(mine, original, rtol=1e-6, atol=1e-12)
    assert solver == "sgd" or ours._optimizer.t == theirs._optimizer.t


def test_probabilities_near_zero_are_bounded_in_the_loss_as_there():
    x, y = 1e4 * X_IRIS, Y_IRIS
    for target in (y, (y > 0).astype(int), np.eye(3, dtype=int)[y]):
        ours, theirs = (cls(max_iter=5, random_state=0).fit(x, target) for cls in (MLPClassifier, neural_network.MLPClassifier))
        np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-8)
        assert ours.loss_curve_[0] > 10


@pytest.mark.parametrize("estimator", [MLPClassifier, MLPRegressor])
def test_float32_stays_float32_and_near(estimator):
    x = X_IRIS.astype(np.float32)
    ours, theirs = (cls(max_iter=10, random_state=0).fit(x, Y_IRIS) for cls in (estimator, ORIGINAL[estimator]))
    np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-4)
    for mine, original in zip(ours.coefs_ + ours.intercepts_, theirs.coefs_ + theirs.intercepts_, strict=True):
        assert mine.dtype == original.dtype == np.float32
    for given in (x, x.astype(np.float64), sparse.csr_array(x)):
        mine, original = ours._forward_pass_fast(given), theirs._forward_pass_fast(given)
        assert mine.dtype == original.dtype
        np.testing.assert_allclose(mine, original, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
@pytest.mark.parametrize("container", [sparse.csr_array, sparse.csr_matrix, sparse.csc_array])
def test_sparse_and_dense_coincide(solver, container, rng):
    x = rng.normal(size=(150, 90)) * (rng.random((150, 90)) < 0.1)
    y = (x @ rng.normal(size=90) > 0).astype(int)
    options = dict(solver=solver, max_iter=5, random_state=0, hidden_layer_sizes=(130, 6), batch_size=32)   # so large that the update rides
    dense, thin = MLPClassifier(**options).fit(x, y), MLPClassifier(**options).fit(container(x), y)
    theirs = neural_network.MLPClassifier(**options).fit(container(x), y)
    np.testing.assert_allclose(thin.loss_, dense.loss_, rtol=1e-9)
    np.testing.assert_allclose(thin.loss_, theirs.loss_, rtol=1e-9)
    for given in (x, container(x)):
        np.testing.assert_allclose(thin.predict_proba(given), dense.predict_proba(given), rtol=1e-7)
    if solver != "lbfgs":   # from one kind to the other and back
        for model in (thin, theirs):
            model.partial_fit(x, y)
            model.partial_fit(container(x), y)
        np.testing.assert_allclose(thin.loss_curve_, theirs.loss_curve_, rtol=1e-9)


@pytest.mark.parametrize("thin", [True, False])
def test_training_gives_the_same_bits_for_any_number_of_threads(no_grain, rng, thin):
    x = sparse.random_array((300, 500), density=0.02, format="csr", rng=rng)
    data, y = x if thin else x.toarray(), np.arange(300) % 3
    one, two = (MLPClassifier(max_iter=9, random_state=0, num_threads=threads, batch_size=50).fit(data, y) for threads in (1, 2))
    assert one.loss_curve_ == two.loss_curve_
    for a, b in zip(one.coefs_, two.coefs_, strict=True):
        np.testing.assert_array_equal(a, b)
    for rows in (1, 20, 33, 300):
        np.testing.assert_array_equal(two.predict_proba(data[:rows]), one.predict_proba(data[:rows]))


@pytest.mark.parametrize("hidden", [5, 40])
@pytest.mark.parametrize("thin", [True, False])
def test_a_fit_that_changes_its_number_of_threads_gives_the_same_bits(no_grain, rng, monkeypatch, thin, hidden):
    """Few parameters, updated after the gradients by one thread and with them by two, and many; a call per epoch, with early stopping"""
    x = sparse.random_array((300, 500), density=0.02, format="csr", rng=rng)
    options = dict(max_iter=7, random_state=0, hidden_layer_sizes=(hidden,), batch_size=10, early_stopping=True)
    data, y = x if thin else x.toarray(), np.arange(300) % 3
    one = MLPClassifier(num_threads=1, **options).fit(data, y)
    turns = itertools.cycle([2, 1, 1, 2])
    monkeypatch.setattr(Pace, "turn", lambda self, seconds: (next(turns), seconds))
    monkeypatch.setattr(Pace, "ran", lambda self, steps: None)
    several = MLPClassifier(num_threads=2, **options).fit(data, y)
    assert one.loss_curve_ == several.loss_curve_
    for a, b in zip(one.coefs_, several.coefs_, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_batch_whose_weights_are_all_zero_counts_for_nothing():
    weights = np.zeros(len(X_IRIS))
    weights[:20] = 1
    model = MLPClassifier(batch_size=5, shuffle=False, max_iter=3, random_state=0, solver="sgd", momentum=0).fit(X_IRIS, Y_IRIS, sample_weight=weights)
    assert np.isfinite(model.loss_curve_).all()


def test_diverging_goes_on_and_ends_as_there(rng):
    x, y = 1e30 * rng.normal(size=(50, 4)), rng.normal(size=50)
    for cls in (MLPRegressor, neural_network.MLPRegressor):
        with warnings.catch_warnings(), pytest.raises(ValueError, match="Solver produced non-finite parameter weights"):
            warnings.simplefilter("ignore")
            cls(solver="sgd", learning_rate_init=1.0, max_iter=5, random_state=0, activation="identity").fit(x, y)


# ---- fitted attributes are the caller's ----------------------------------------------------------------------------------------------------

def test_what_is_written_to_coefs_counts():
    model = MLPClassifier(max_iter=3, random_state=0).fit(X_IRIS, Y_IRIS)
    before = model.predict_proba(X_IRIS)
    model.coefs_[1][...] = 0
    model.intercepts_[1][...] = 0
    np.testing.assert_allclose(model.predict_proba(X_IRIS), 1 / 3)                       # in place
    model.coefs_[1], model.intercepts_[1] = np.ones((100, 3)), np.array([0, 0, 5.0])
    assert (model.predict(X_IRIS) == 2).all() and not np.array_equal(before, model.predict_proba(X_IRIS))
    model.partial_fit(X_IRIS, Y_IRIS)                                                    # goes on from what was put there
    assert model.intercepts_[1][2] > 4
    model.activation = "tanh"
    theirs = neural_network.MLPClassifier(activation="tanh")
    theirs.__dict__.update({k: v for k, v in model.__dict__.items() if k != "_network"})
    np.testing.assert_allclose(model.predict_proba(X_IRIS), theirs.predict_proba(X_IRIS), rtol=1e-9, atol=1e-12)
    model.coefs_[0] = np.ones((3, 100))
    with pytest.raises(ValueError, match=r"coefs_"):
        model.partial_fit(X_IRIS, Y_IRIS)


def test_pickles_and_copies_go_on_as_the_estimator_would():
    model = MLPRegressor(max_iter=5, random_state=np.random.RandomState(0), hidden_layer_sizes=(9,)).fit(X_IRIS, Y_IRIS)
    twins = [pickle.loads(pickle.dumps(model)), copy.deepcopy(model)]
    for twin in twins:
        np.testing.assert_array_equal(twin.predict(X_IRIS), model.predict(X_IRIS))
    model.partial_fit(X_IRIS, Y_IRIS)
    for twin in twins:
        assert not np.array_equal(twin.coefs_[0], model.coefs_[0])
        twin.partial_fit(X_IRIS, Y_IRIS)
        np.testing.assert_array_equal(twin.coefs_[0], model.coefs_[0])
    assert not hasattr(clone(model), "coefs_")


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames_with_feature_names(library):
    frames = pytest.importorskip(library)
    x, names = X_IRIS[:, :2], ["length", "width"]
    frame = frames.DataFrame({name: x[:, i] for i, name in enumerate(names)})
    model = MLPClassifier(max_iter=3, random_state=0, early_stopping=True).fit(frame, Y_IRIS)
    assert list(model.feature_names_in_) == names
    np.testing.assert_array_equal(model.predict(frame), MLPClassifier(max_iter=3, random_state=0, early_stopping=True).fit(x, Y_IRIS).predict(x))
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame.rename(columns={"width": "height"}) if library == "pandas" else frame.rename({"width": "height"}))


def test_metadata_is_routed():
    with config_context(enable_metadata_routing=True):
        model = MLPClassifier(max_iter=2, random_state=0).set_fit_request(sample_weight=True)
        weights = np.linspace(0, 1, len(X_IRIS))
        scores = cross_validate(model.set_score_request(sample_weight=False), X_IRIS, Y_IRIS, params={"sample_weight": weights}, cv=2)
    assert np.isfinite(scores["test_score"]).all()


def test_read_only_memory_maps(tmp_path):
    np.save(tmp_path / "x.npy", X_IRIS)
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    model = MLPClassifier(max_iter=2, random_state=0).fit(x, Y_IRIS)
    np.testing.assert_array_equal(model.predict(x), MLPClassifier(max_iter=2, random_state=0).fit(X_IRIS, Y_IRIS).predict(X_IRIS))


def test_fits_run_at_the_same_time_in_threads():
    options = [dict(hidden_layer_sizes=width, alpha=alpha) for width in (5, 20) for alpha in (0, 0.1)]
    alone = [MLPClassifier(max_iter=20, random_state=0, **each).fit(X_IRIS, Y_IRIS).loss_curve_ for each in options]
    together = Parallel(n_jobs=4, backend="threading")(
        delayed(MLPClassifier(max_iter=20, random_state=0, **each).fit)(X_IRIS, Y_IRIS) for each in options)
    assert [model.loss_curve_ for model in together] == alone
    search = GridSearchCV(MLPClassifier(max_iter=5, random_state=0), {"alpha": [0, 1e-3]}, cv=2, n_jobs=2).fit(X_IRIS, Y_IRIS)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_fits_at_the_same_time_share_the_threads():
    class Count:
        def on_epoch_end(self, model, epoch, logs):
            seen.append(fb.get_num_threads())
            if len(seen) == 1:
                MLPClassifier(max_iter=1, callbacks=[self]).fit(X_IRIS, Y_IRIS)
                MLPClassifier(max_iter=1, callbacks=[self], num_threads=3).fit(X_IRIS, Y_IRIS)

    seen = []
    with fb.num_threads(4):
        MLPClassifier(max_iter=2, callbacks=[Count()]).fit(X_IRIS, Y_IRIS)
        assert fb.get_num_threads() == 4
    assert seen == [4, 2, 3, 4]


def test_ctrl_c_leaves_a_usable_model(monkeypatch):
    from fastbp import training

    advance, calls = training._NativeRun.advance, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return advance(self, *arguments)

    monkeypatch.setattr(training._NativeRun, "advance", interrupted)
    monkeypatch.setattr(training, "SLICE", 0.0)   # a step, here an epoch, in a call
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        model = MLPClassifier(max_iter=50, random_state=0).fit(X_IRIS, Y_IRIS)
    assert model.n_iter_ == 3 and model.predict(X_IRIS).shape == Y_IRIS.shape


class Look:
    """A callback, for which every epoch is a call of its own"""

    def on_epoch_end(self, model, epoch, logs):
        pass


@pytest.mark.parametrize("options", [
    dict(), dict(shuffle=False), dict(tol=0.05, n_iter_no_change=2), dict(solver="sgd", learning_rate="adaptive", learning_rate_init=0.5, tol=0.1, n_iter_no_change=1),
    dict(solver="sgd", learning_rate="invscaling"), dict(n_iter_no_change=np.inf), dict(tol=np.float64(1e-9), solver="sgd", learning_rate_init=1e-30), dict(solver="sgd", learning_rate_init=1e300), dict(warm_start=True, max_iter=5)], ids=str)
@pytest.mark.parametrize("rows", [2, 3, 64, 65, 150])
@pytest.mark.parametrize("slice_", [0.0, 1.0])
def test_epochs_that_run_on_in_one_call_equal_single_ones(monkeypatch, dtype, slice_, rows, options):
    monkeypatch.setattr("fastbp.training.SLICE", slice_)
    x, y = X_IRIS[::-1][:rows].astype(dtype), Y_IRIS[:rows] % 2
    y[0] = 1
    models = []
    for callbacks in (None, [Look()]):
        model = MLPClassifier((6,), **{"max_iter": 40, "batch_size": min(rows, 40)} | options, random_state=7, callbacks=callbacks)
        for _ in range(2):
            with contextlib.suppress(ValueError):   # parameters that are not finite are refused at the end
                model.fit(x, y)
        models.append(model)
    one, other = models
    assert one.n_iter_ == other.n_iter_ and one.t_ == other.t_ and one._no_improvement_count == other._no_improvement_count
    np.testing.assert_array_equal(one.loss_curve_, other.loss_curve_)
    np.testing.assert_array_equal(one.coefs_[0], other.coefs_[0])
    assert one._random_state.randint(2**31) == other._random_state.randint(2**31)
    assert one._optimizer.learning_rate == other._optimizer.learning_rate and one.best_loss_ == other.best_loss_


# ---- beyond the original -------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("solver", ["sgd", "lbfgs"])
def test_class_weight_is_a_sample_weight(solver):
    y = np.array([0] * 100 + [1] * 50)
    options = dict(solver=solver, max_iter=10, random_state=0)
    balanced = MLPClassifier(class_weight="balanced", **options).fit(X_IRIS, y)
    weights = np.where(y == 0, 150 / 200, 150 / 100)
    np.testing.assert_allclose(balanced.loss_, neural_network.MLPClassifier(**options).fit(X_IRIS, y, sample_weight=weights).loss_, rtol=1e-9)
    by_name = MLPClassifier(class_weight={"no": 0.75, "yes": 1.5}, **options).fit(X_IRIS, np.array(["no", "yes"])[y])
    np.testing.assert_allclose(by_name.loss_, balanced.loss_, rtol=1e-12)
    both = MLPClassifier(class_weight={0: 0.75, 1: 1.5}, **options).fit(X_IRIS, y, sample_weight=np.full(150, 2.0))
    np.testing.assert_allclose(both.loss_, MLPClassifier(**options).fit(X_IRIS, y, sample_weight=2 * weights).loss_, rtol=1e-12)
    with pytest.raises(ValueError, match="balanced"):
        MLPClassifier(class_weight="balanced").partial_fit(X_IRIS, y, classes=[0, 1])


def test_no_hidden_layer_is_linear_softmax_and_poisson_regression():
    x, y = make_regression(n_samples=80, n_features=5, n_targets=2, random_state=0)
    linear = MLPRegressor(hidden_layer_sizes=(), solver="lbfgs", alpha=0, tol=1e-10, max_iter=500).fit(x, y)
    np.testing.assert_allclose(linear.coefs_[0], LinearRegression().fit(x, y).coef_.T, rtol=1e-4)
    counts = np.random.default_rng(0).poisson(np.exp(0.3 * x[:, 0]))
    poisson = MLPRegressor(loss="poisson", hidden_layer_sizes=(), solver="lbfgs", alpha=0, tol=1e-10).fit(x, counts)
    np.testing.assert_allclose(poisson.predict(x), PoissonRegressor(alpha=0, tol=1e-10).fit(x, counts).predict(x), rtol=1e-3)
    softmax = MLPClassifier(hidden_layer_sizes=(), max_iter=5, random_state=0).fit(X_IRIS, Y_IRIS)
    assert [coef.shape for coef in softmax.coefs_] == [(4, 3)] and softmax.loss_curve_[-1] < softmax.loss_curve_[0]


def test_an_activation_per_layer():
    options = dict(hidden_layer_sizes=(6, 5), max_iter=5, random_state=0)
    same = MLPClassifier(activation=["tanh", "tanh"], **options).fit(X_IRIS, Y_IRIS)
    np.testing.assert_array_equal(same.loss_curve_, MLPClassifier(activation="tanh", **options).fit(X_IRIS, Y_IRIS).loss_curve_)
    logistic = MLPClassifier(activation=("logistic", "logistic"), **options).fit(X_IRIS, Y_IRIS)
    np.testing.assert_allclose(logistic.loss_curve_, MLPClassifier(activation="logistic", **options).fit(X_IRIS, Y_IRIS).loss_curve_, rtol=1e-9)
    model = MLPRegressor(activation=["silu", "elu"], **options).fit(X_IRIS, Y_IRIS)
    silu = X_IRIS @ model.coefs_[0] + model.intercepts_[0]
    elu = silu / (1 + np.exp(-silu)) @ model.coefs_[1] + model.intercepts_[1]
    out = np.where(elu > 0, elu, np.expm1(elu)) @ model.coefs_[2] + model.intercepts_[2]
    np.testing.assert_allclose(model.predict(X_IRIS), out[:, 0], rtol=1e-9)
    for name in ("leaky_relu", "gelu", "softplus"):
        assert np.isfinite(MLPRegressor(activation=name, **options).fit(X_IRIS, Y_IRIS).loss_)
    with pytest.raises(ValueError, match=r"one name per hidden layer, 2"):
        MLPClassifier(activation=["relu"], hidden_layer_sizes=(3, 3)).fit(X_IRIS, Y_IRIS)
    with pytest.raises(ValueError, match=r"'sine'"):
        MLPClassifier(activation=["sine"], hidden_layer_sizes=3).fit(X_IRIS, Y_IRIS)
    with pytest.raises(ValueError, match="'activation' parameter"):
        MLPClassifier(activation="sine").fit(X_IRIS, Y_IRIS)


def test_dropout_regularises_and_is_reproducible():
    options = dict(hidden_layer_sizes=(50, 50), max_iter=30, random_state=0)
    plain, dropped, again = (MLPClassifier(dropout=p, **options).fit(X_IRIS, Y_IRIS) for p in (0.0, 0.5, 0.5))
    assert dropped.loss_curve_ == again.loss_curve_ and dropped.loss_curve_[-1] > plain.loss_curve_[-1]
    np.testing.assert_array_equal(dropped.predict_proba(X_IRIS), dropped.predict_proba(X_IRIS))   # none when predicting
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(dropped)).predict_proba(X_IRIS), dropped.predict_proba(X_IRIS))


def test_a_validation_set_of_ones_own():
    x, y, xv, yv = X_IRIS[::2], Y_IRIS[::2], X_IRIS[1::2], Y_IRIS[1::2]
    model = MLPClassifier(max_iter=8, random_state=0).fit(x, y, X_val=xv, y_val=yv)
    plain = MLPClassifier(max_iter=8, random_state=0).fit(x, y)
    assert model.loss_curve_ == plain.loss_curve_ and plain.validation_loss_curve_ is None and model.validation_scores_ is None
    probability = model.predict_proba(xv)[np.arange(len(yv)), yv]
    assert len(model.validation_loss_curve_) == 8
    np.testing.assert_allclose(model.validation_loss_curve_[-1], -np.log(probability).mean(), rtol=1e-9)

    stopped = MLPClassifier(max_iter=300, random_state=0, early_stopping=True, n_iter_no_change=3, learning_rate_init=0.01).fit(x, y, X_val=xv, y_val=yv)
    assert stopped.n_iter_ < 300 and len(stopped.validation_scores_) == stopped.n_iter_ == len(stopped.validation_loss_curve_)
    assert stopped.score(xv, yv) == stopped.best_validation_score_
    weights = np.linspace(0, 1, len(yv))
    weighted = MLPRegressor(max_iter=3, random_state=0).fit(x, y, X_val=sparse.csr_array(xv).toarray(), y_val=yv, sample_weight_val=weights)
    expected = 0.5 * np.average((weighted.predict(xv) - yv) ** 2, weights=weights)
    np.testing.assert_allclose(weighted.validation_loss_curve_[-1], expected, rtol=1e-9)
    with pytest.raises(ValueError, match="X_val and y_val"):
        MLPClassifier().fit(x, y, X_val=xv)
    with pytest.raises(ValueError, match="y_val has classes"):
        MLPClassifier().fit(x, y, X_val=xv, y_val=yv + 1)
    with pytest.raises(ValueError, match="features"):
        MLPClassifier().fit(x, y, X_val=xv[:, :2], y_val=yv)


def test_callbacks_see_every_epoch_and_may_stop():
    class Watch:
        def __init__(self):
            self.seen, self.batches = [], 0

        def on_train_begin(self, model):
            self.seen.append("begin")

        def on_epoch_end(self, model, epoch, logs):
            self.seen.append((epoch, sorted(logs)))
            return epoch == 3

        def on_batch_end(self, model, batch, logs):
            self.batches += 1

        def on_train_end(self, model):
            self.seen.append("end")

    watch = Watch()
    model = MLPClassifier(max_iter=10, random_state=0, batch_size=50, early_stopping=True, callbacks=[watch]).fit(X_IRIS, Y_IRIS)
    assert watch.seen == ["begin", *((epoch, ["loss", "val_loss", "val_score"]) for epoch in range(4)), "end"] and watch.batches == 12
    assert model.n_iter_ == 4
    plain = MLPClassifier(max_iter=4, random_state=0, batch_size=50, early_stopping=True).fit(X_IRIS, Y_IRIS)
    np.testing.assert_array_equal(model.loss_curve_, plain.loss_curve_)


def test_the_librarys_callbacks_work_here(tmp_path):
    stop = fb.EarlyStopping("val_loss", patience=2)
    reduce = fb.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=10.0)
    saved = fb.ModelCheckpoint(tmp_path / "best.safetensors", monitor="val_loss")
    model = MLPClassifier(max_iter=300, random_state=0, solver="sgd", learning_rate_init=0.5, callbacks=[stop, reduce, saved])
    model.fit(X_IRIS[::2], Y_IRIS[::2], X_val=X_IRIS[1::2], y_val=Y_IRIS[1::2])
    assert stop.stopped_epoch is not None and model.n_iter_ == stop.stopped_epoch + 1
    assert reduce.reductions and model._optimizer.learning_rate == reduce.reductions[-1][1] < 0.5
    best = fb.load(tmp_path / "best.safetensors")
    np.testing.assert_array_equal(best.predict(X_IRIS).argmax(axis=1), model.predict(X_IRIS))   # both are those of the best epoch


@pytest.mark.parametrize(("loss", "options", "value"), [
    ("absolute_error", {}, lambda p, y: np.abs(p - y).mean()),
    ("huber", {"delta": 0.3}, lambda p, y: np.where(np.abs(p - y) <= 0.3, (p - y) ** 2 / 2, 0.3 * (np.abs(p - y) - 0.15)).mean()),
    ("quantile", {"quantile": 0.8}, lambda p, y: mean_pinball_loss(y, p, alpha=0.8)),
])
def test_more_losses(loss, options, value):
    x, y = make_regression(n_samples=200, n_features=4, noise=20, random_state=0)
    y /= y.std()
    model = MLPRegressor(loss=loss, alpha=0, max_iter=150, random_state=0, batch_size=200, learning_rate_init=0.01, shuffle=False, **options)
    before = clone(model).set_params(max_iter=1).fit(x, y)
    model.fit(x, y, X_val=x, y_val=y)
    np.testing.assert_allclose(model.validation_loss_curve_[-1], value(model.predict(x), y), rtol=1e-9)
    np.testing.assert_allclose(model.loss_curve_[1], value(before.predict(x), y), rtol=1e-9)
    assert model.loss_ < 0.2 * model.loss_curve_[0]
    if loss == "quantile":
        assert 0.7 < (y <= model.predict(x)).mean() < 0.9


def test_clipping_bounds_the_step():
    model = MLPRegressor(solver="sgd", momentum=0, learning_rate_init=1.0, alpha=0, max_iter=1, random_state=0, batch_size=150, clip_norm=1e-3)
    start = clone(model).set_params(learning_rate_init=1e-12).fit(X_IRIS, 100 * Y_IRIS)
    model.fit(X_IRIS, 100 * Y_IRIS)
    step = np.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(model.coefs_ + model.intercepts_, start.coefs_ + start.intercepts_, strict=True)))
    np.testing.assert_allclose(step, 1e-3, rtol=1e-4)


def test_num_threads_and_progress(capsys, no_grain):
    one, two = (MLPClassifier(max_iter=3, random_state=0, num_threads=threads).fit(X_IRIS, Y_IRIS) for threads in (1, 2))
    assert one.loss_curve_ == two.loss_curve_
    for solver in ("adam", "lbfgs"):
        MLPClassifier(max_iter=3, random_state=0, progress=True, solver=solver).fit(X_IRIS, Y_IRIS)
        assert "loss" in capsys.readouterr().err
    MLPClassifier(max_iter=3, random_state=0, verbose=True).fit(X_IRIS, Y_IRIS)
    neural_network.MLPClassifier(max_iter=3, random_state=0, verbose=True).fit(X_IRIS, Y_IRIS)
    out = capsys.readouterr().out.splitlines()
    assert out[:3] == out[3:] and out[0].startswith("Iteration 1, loss = ")


@pytest.mark.parametrize("wish", [{"dropout": 0.1}, {"clip_norm": 1.0}, {"callbacks": [fb.EarlyStopping()]}])
def test_what_needs_epochs_refuses_lbfgs(wish):
    with pytest.raises(ValueError, match=next(iter(wish))):
        MLPClassifier(solver="lbfgs", **wish).fit(X_IRIS, Y_IRIS)
    with pytest.raises(ValueError, match="X_val"):
        MLPClassifier(solver="lbfgs").fit(X_IRIS, Y_IRIS, X_val=X_IRIS, y_val=Y_IRIS)


@pytest.mark.parametrize("bad", [{"dropout": 1.0}, {"clip_norm": 0.0}, {"callbacks": "stop"}, {"num_threads": 0}, {"progress": "yes"}, {"class_weight": "even"}])
def test_bad_parameters_are_named(bad):
    with pytest.raises(ValueError, match=f"'{next(iter(bad))}' parameter"):
        MLPClassifier(**bad).fit(X_IRIS, Y_IRIS)
    with pytest.raises(TypeError, match="callbacks must have"):
        MLPClassifier(callbacks=[3]).fit(X_IRIS, Y_IRIS)


def test_multilabel_and_unusual_labels():
    x, y = make_multilabel_classification(n_samples=60, n_classes=4, random_state=0)
    ours, theirs = (cls(max_iter=5, random_state=0, class_weight=None).fit(x, y) if cls is MLPClassifier else cls(max_iter=5, random_state=0).fit(x, y)
                    for cls in (MLPClassifier, neural_network.MLPClassifier))
    np.testing.assert_array_equal(ours.predict(x), theirs.predict(x))
    x, y = make_classification(n_samples=60, random_state=0)
    for labels in (np.array(["x", "y"], dtype=object)[y], y.astype(bool), -y):
        np.testing.assert_array_equal(MLPClassifier(max_iter=5, random_state=0).fit(x, labels).classes_, np.unique(labels))


def test_a_sparse_network_refuses_dense_rows_where_it_is_handed_out():
    """Callbacks see the chain of layers; for sparse data its input is no array"""
    class Poke:
        def on_epoch_end(self, model, epoch, logs):
            for method in (model.predict, model.forward):
                with pytest.raises(TypeError, match="sparse"):
                    method(X_IRIS)

    MLPClassifier(max_iter=1, callbacks=[Poke()]).fit(sparse.csr_array(X_IRIS), Y_IRIS)


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array])
def test_a_trained_network_has_a_model_file_for_dense_rows(kind, tmp_path):
    saved = fb.ModelCheckpoint(tmp_path / "last.safetensors", monitor="loss", mode="max")
    model = MLPClassifier((7,), max_iter=1, callbacks=[saved], random_state=0).fit(kind(X_IRIS), Y_IRIS)
    loaded = fb.load(tmp_path / "last.safetensors")
    np.testing.assert_array_equal(loaded.parameters["0.weight"], model.coefs_[0].T)
    np.testing.assert_array_equal(loaded.predict(X_IRIS).argmax(axis=1), model.predict(X_IRIS))
    assert model.coefs_[0].flags.c_contiguous and loaded.parameters["0.weight"].flags.c_contiguous


@pytest.mark.parametrize("broken", [
    {"indptr": np.array([1, 2, 3])}, {"indptr": np.array([0, 2, 1])}, {"indptr": np.array([0, 1, 9])}, {"indptr": np.array([0, 1])},
    {"indices": np.array([0, 4, 1], np.int32)}, {"indices": np.array([0, -1, 1], np.int32)}, {"indices": np.array([0, 1, 2])},
    {"indices": np.array([0], np.int32)}, {"data": np.ones(3, np.float32)}, {"shape": (2, 5)}, {"shape": (3, 4)}, {"shape": (0, 4)},
])
def test_a_broken_sparse_matrix_reads_nothing_that_is_not_its_own(broken):
    """Past this point C follows the indices"""
    from fastbp.sklearn import _Csr, _Network

    network = _Network((4, 3, 2), ("relu",), 0.0, True, np.dtype(np.float64))
    sound = {"shape": (2, 4), "indptr": np.array([0, 1, 3]), "indices": np.array([0, 3, 1], np.int32), "data": np.ones(3)}
    assert network.logits(_Csr(**sound)).shape == (2, 2)
    with pytest.raises(ValueError):
        network.logits(_Csr(**sound | broken))


def test_convergence_is_reported():
    with pytest.warns(ConvergenceWarning, match=r"Maximum iterations \(2\) reached and the optimization hasn't converged yet"):
        MLPClassifier(max_iter=2).fit(X_IRIS, Y_IRIS)


def test_a_discarded_estimator_is_gone_at_once():
    """No cycle keeps parameters and the memory of the fit until the collector comes"""
    x, y = X_IRIS, Y_IRIS
    gc.collect()
    gc.disable()
    try:
        network = weakref.ref(MLPRegressor(max_iter=2).fit(x, x[:, 0])._network)
        assert network() is None
    finally:
        gc.enable()


def test_networks_of_a_form_share_layers_but_no_parameters():
    x, y = X_IRIS, Y_IRIS
    first, second = (MLPClassifier((7,), max_iter=3, random_state=seed).fit(x, y) for seed in (0, 1))
    expected = first.predict_proba(x)
    assert first._network.model.layers is second._network.model.layers
    assert first._network.paces is second._network.paces and len(first._network.paces) == 1
    assert not np.shares_memory(first._network.model.flat_parameters, second._network.model.flat_parameters)
    second.partial_fit(x, y)
    np.testing.assert_array_equal(first.predict_proba(x), expected)


@pytest.mark.parametrize("options", [{"alpha": -1}, {"hidden_layer_sizes": -1}, {"max_iter": 1.0}, {"shuffle": 1}, {"hidden_layer_sizes": (3, -1)}], ids=str)
def test_parameters_are_checked_again_when_they_change(options):
    """Also to a value of another type that is equal"""
    x, y = X_IRIS, Y_IRIS
    model = MLPClassifier(alpha=1, max_iter=1, random_state=0).fit(x, y)
    for _ in range(2):
        with pytest.raises(ValueError):
            model.set_params(**options).fit(x, y)
