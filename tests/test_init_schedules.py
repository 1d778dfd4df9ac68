"""Initialisers (their distributions and errors) and learning-rate schedules (their formulas, ranges and errors)."""
import copy
import math
import pickle

import numpy as np
import pytest

import fastbp as fb
from fastbp import init, schedules

NAMES = ["default", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "zeros"]
OUT, IN = 300, 200

# Bound of the uniform ones, standard deviation of the normal ones: the formulas of the papers and of PyTorch.
UNIFORM = {"default": 1 / math.sqrt(IN), "xavier_uniform": math.sqrt(6 / (IN + OUT)), "kaiming_uniform": math.sqrt(6 / IN)}
NORMAL = {"xavier_normal": math.sqrt(2 / (IN + OUT)), "kaiming_normal": math.sqrt(2 / IN)}


# --- initialisers ---------------------------------------------------------------------------------------------------


def test_init_names_are_the_documented_ones():
    assert list(init.INITIALISERS) == NAMES


@pytest.mark.parametrize("name, bound", UNIFORM.items())
def test_init_uniform_fills_its_interval_evenly(name, bound, rng):
    scaled = init.weight(name, rng, (OUT, IN)) / bound
    assert scaled.min() >= -1 and scaled.max() <= 1
    counts, _ = np.histogram(scaled, bins=10, range=(-1, 1))
    # 60,000 draws in 10 bins: 6,000 each with a standard deviation of 73
    assert np.abs(counts - OUT * IN / 10).max() < 5 * math.sqrt(OUT * IN * 0.1 * 0.9)


@pytest.mark.parametrize("name, deviation", NORMAL.items())
def test_init_normal_has_its_moments(name, deviation, rng):
    scaled = init.weight(name, rng, (OUT, IN)) / deviation
    n = scaled.size
    assert abs(scaled.mean()) < 5 / math.sqrt(n)
    assert abs(scaled.std() - 1) < 5 / math.sqrt(2 * n)
    assert abs((scaled**4).mean() - 3) < 5 * math.sqrt(96 / n)  # not uniform (1.8), not Laplace (6)


def test_init_zeros_is_zero(rng):
    assert not init.weight("zeros", rng, (OUT, IN)).any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (5, 3)])
def test_init_weight_is_a_fresh_float64_array(name, shape, rng):
    array = init.weight(name, rng, shape)
    assert (array.shape, array.dtype, array.flags.c_contiguous, array.flags.writeable) == (shape, np.float64, True, True)


@pytest.mark.parametrize("name", NAMES)
def test_init_is_a_function_of_the_generator(name):
    first, again = (init.weight(name, np.random.default_rng(7), (5, 3)) for _ in range(2))
    other = init.weight(name, np.random.default_rng(8), (5, 3))
    assert np.array_equal(first, again)
    assert np.array_equal(first, other) == (name == "zeros")


def test_init_default_bias_is_uniform_in_fan_in(rng):
    bias = init.bias("default", rng, (5000,), 16)
    assert np.abs(bias).max() <= 1 / 4 and np.abs(bias).max() > 0.99 / 4
    assert bias.min() < -0.99 / 4


@pytest.mark.parametrize("given", [*NAMES[1:], lambda rng, shape: np.ones(shape)])
def test_init_other_biases_are_zero(given, rng):
    assert np.array_equal(init.bias(given, rng, (5,), 3), np.zeros(5))


def test_init_callable_gets_generator_and_shape(rng):
    seen = []
    values = init.weight(lambda *arguments: seen.append(arguments) or np.arange(6).reshape(2, 3), rng, (2, 3))
    assert seen == [(rng, (2, 3))]
    assert values.dtype == np.float64 and np.array_equal(values, [[0, 1, 2], [3, 4, 5]])


def test_init_callable_keeps_its_own_array(rng):
    own = np.ones((2, 3))
    init.weight(lambda rng, shape: own, rng, (2, 3))[:] = 0
    assert np.array_equal(own, np.ones((2, 3)))


@pytest.mark.parametrize("returned, error, words", [
    (np.ones((3, 2)), ValueError, ["(2, 3)", "(3, 2)"]),
    (1.0, ValueError, ["(2, 3)", "()"]),
    ([[1, 2, 3], [4, np.nan, 6]], ValueError, ["finite", "nan", "(1, 1)"]),
    ([[1, 2, np.inf], [4, 5, 6]], ValueError, ["finite", "inf", "(0, 2)"]),
    (np.ones((2, 3), complex), TypeError, ["real", "complex128"]),
    (np.ones((2, 3), bool), TypeError, ["real", "bool"]),
    (np.full((2, 3), None), TypeError, ["real", "object"]),
    (None, TypeError, ["real", "object"]),
])
def test_init_callable_is_checked(returned, error, words, rng):
    with pytest.raises(error) as caught:
        init.weight(lambda rng, shape: returned, rng, (2, 3))
    assert all(word in str(caught.value) for word in ["init", *words])


@pytest.mark.parametrize("name", NAMES)
def test_init_validate_accepts_its_names(name):
    assert init.validate(name) is None


@pytest.mark.parametrize("given, error, words", [
    ("he", ValueError, ["'he'", *map(repr, NAMES)]),
    ("", ValueError, ["''"]),
    (None, TypeError, ["NoneType"]),
    (0.1, TypeError, ["float", "0.1"]),
])
def test_init_validate_rejects(given, error, words):
    with pytest.raises(error) as caught:
        init.validate(given)
    assert all(word in str(caught.value) for word in ["init", *words])


@pytest.mark.parametrize("shape", [(2**40, 2**40), (2**70, 1)])
def test_init_of_impossible_size_is_a_memory_error(shape, rng):
    with pytest.raises(MemoryError, match="shape"):
        init.weight("default", rng, shape)


@pytest.mark.parametrize("given", [*NAMES, lambda rng, shape: rng.uniform(-1, 1, shape)])
def test_init_is_what_a_layer_starts_from(given, dtype):
    model = fb.Sequential(fb.Linear(30, 20, init=given), dtype=dtype, seed=3)
    weight, bias = model.parameters["0.weight"], model.parameters["0.bias"]
    bound = {**UNIFORM, "default": 1 / math.sqrt(30), "xavier_uniform": math.sqrt(6 / 50), "zeros": 0,
             "kaiming_uniform": math.sqrt(6 / 30)}.get(given if isinstance(given, str) else None, math.inf)
    assert weight.dtype == dtype and np.abs(weight).max() <= bound
    assert weight.any() == (given != "zeros")
    assert bias.any() == (given == "default")


def test_init_float32_model_is_the_rounded_float64_model():
    small, large = (fb.Sequential(fb.Linear(7, 5), fb.Tanh(), fb.Linear(5, 3), dtype=dtype, seed=11)
                    for dtype in ("float32", "float64"))
    for name, value in large.parameters.items():
        assert np.array_equal(small.parameters[name], value.astype(np.float32))


# --- schedules ------------------------------------------------------------------------------------------------------

ALL = [
    schedules.StepDecay(0.1, 30, gamma=0.5),
    schedules.Exponential(0.1, 0.99),
    schedules.Cosine(0.1, 100, lr_min=0.001),
    schedules.WarmUp(0.1, 10),
    schedules.WarmUp(schedules.Cosine(0.1, 100), 10),
    schedules.OneCycle(0.1, 100),
]


def test_schedules_are_public():
    assert fb.schedules is schedules


@pytest.mark.parametrize("schedule, points", [
    (schedules.StepDecay(1.0, 3, gamma=0.5), {0: 1, 2: 1, 3: 0.5, 5: 0.5, 6: 0.25}),
    (schedules.StepDecay(1.0, 2), {0: 1, 2: 0.1, 4: 0.01}),
    (schedules.Exponential(2.0, 0.5), {0: 2, 1: 1, 2: 0.5, 10: 2 / 1024}),
    (schedules.Cosine(1.0, 4), {0: 1, 1: (1 + math.sqrt(0.5)) / 2, 2: 0.5, 3: (1 - math.sqrt(0.5)) / 2, 4: 0, 9: 0}),
    (schedules.Cosine(1.0, 2, lr_min=0.5), {0: 1, 1: 0.75, 2: 0.5, 3: 0.5}),
    (schedules.WarmUp(0.4, 3), {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4, 99: 0.4}),
    (schedules.WarmUp(schedules.Exponential(0.4, 0.5), 3), {0: 0.1, 2: 0.3, 3: 0.4, 4: 0.2, 5: 0.1}),
    (schedules.WarmUp(lambda step: 2.0 - step, 1), {0: 1, 1: 2, 2: 1, 3: 0}),
    (schedules.OneCycle(1.0, 11, pct_start=6 / 11, div_factor=10, final_div_factor=10), {0: 0.1, 5: 1, 10: 0.01, 11: 0.01}),
], ids=repr)
def test_schedules_have_their_values(schedule, points):
    assert {step: schedule(step) for step in points} == pytest.approx(points, rel=1e-14, abs=1e-15)


@pytest.mark.parametrize("steps, pct_start", [(100, 0.3), (7, 0.5), (10, 0.0), (10, 1.0), (1, 0.3), (12, 0.25)])
def test_schedules_one_cycle_is_written_out(steps, pct_start):
    """The formulas of torch's OneCycleLR with its default factors"""
    schedule = schedules.OneCycle(0.5, steps, pct_start=pct_start)
    peak, end = pct_start * steps - 1, steps - 1
    for step in range(steps):
        rising = step <= peak
        low, high = 0.5 / 25 if rising else 0.5 / 25 / 1e4, 0.5
        fraction = step / peak if rising else 1 - (step - peak) / (end - peak)  # 1 at the top
        expected = low + (high - low) * (1 - math.cos(math.pi * fraction)) / 2
        assert schedule(step) == pytest.approx(expected, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_schedules_give_positive_floats(schedule):
    rates = [schedule(step) for step in range(250)]
    assert all(type(rate) is float and 0 <= rate <= 0.1 + 1e-15 for rate in rates)
    assert schedule(0) > 0
    assert schedule(np.int64(17)) == rates[17]


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_schedules_are_values(schedule):
    for twin in (copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))):
        assert twin == schedule and hash(twin) == hash(schedule) and twin(13) == schedule(13)
    with pytest.raises(AttributeError):
        schedule.lr = 1.0


def test_schedules_with_other_values_differ():
    assert schedules.Cosine(0.1, 100) != schedules.Cosine(0.1, 101)
    assert schedules.Cosine(np.float64(0.1), np.int64(100)) == schedules.Cosine(0.1, 100)


@pytest.mark.parametrize("make, error, words", [
    (lambda: schedules.StepDecay(0.0, 10), ValueError, ["lr", "0.0"]),
    (lambda: schedules.StepDecay(-1.0, 10), ValueError, ["lr", "-1.0"]),
    (lambda: schedules.StepDecay(math.nan, 10), ValueError, ["lr", "nan", "finite"]),
    (lambda: schedules.StepDecay("0.1", 10), TypeError, ["lr", "'0.1'"]),
    (lambda: schedules.StepDecay(True, 10), TypeError, ["lr", "True"]),
    (lambda: schedules.StepDecay(0.1, 0), ValueError, ["step_size", "0"]),
    (lambda: schedules.StepDecay(0.1, 2.5), TypeError, ["step_size", "2.5"]),
    (lambda: schedules.StepDecay(0.1, 10, gamma=0), ValueError, ["gamma", "0"]),
    (lambda: schedules.Exponential(math.inf, 0.9), ValueError, ["lr", "inf"]),
    (lambda: schedules.Exponential(0.1, -0.9), ValueError, ["gamma", "-0.9"]),
    (lambda: schedules.Cosine(0.1, 0), ValueError, ["steps", "0"]),
    (lambda: schedules.Cosine(0.1, 10.0), TypeError, ["steps", "10.0"]),
    (lambda: schedules.Cosine(0.1, 10, lr_min=0.2), ValueError, ["lr_min", "0.2", "0.1"]),
    (lambda: schedules.Cosine(0.1, 10, lr_min=-0.1), ValueError, ["lr_min", "-0.1"]),
    (lambda: schedules.Cosine(0.1, 10, lr_min=math.nan), ValueError, ["lr_min", "nan"]),
    (lambda: schedules.WarmUp("0.1", 10), TypeError, ["schedule", "'0.1'"]),
    (lambda: schedules.WarmUp(-0.1, 10), ValueError, ["schedule", "-0.1"]),
    (lambda: schedules.WarmUp(0.1, 0), ValueError, ["steps", "0"]),
    (lambda: schedules.OneCycle(0.0, 10), ValueError, ["lr_max", "0.0"]),
    (lambda: schedules.OneCycle(0.1, -1), ValueError, ["steps", "-1"]),
    (lambda: schedules.OneCycle(0.1, 10, pct_start=1.5), ValueError, ["pct_start", "1.5"]),
    (lambda: schedules.OneCycle(0.1, 10, pct_start=None), TypeError, ["pct_start", "None"]),
    (lambda: schedules.OneCycle(0.1, 10, div_factor=0.5), ValueError, ["div_factor", "0.5"]),
    (lambda: schedules.OneCycle(0.1, 10, final_div_factor=0), ValueError, ["final_div_factor", "0"]),
    (lambda: schedules.Cosine(0.1, 10)(-1), ValueError, ["step", "-1"]),
    (lambda: schedules.Cosine(0.1, 10)(1.0), TypeError, ["step", "1.0"]),
    (lambda: schedules.Exponential(1.0, 2.0)(5000), ValueError, ["lr", "finite", "5000"]),
])
def test_schedules_reject(make, error, words):
    with pytest.raises(error) as caught:
        make()
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_schedules_drive_fit_as_they_drive_a_loop(schedule, rng):
    x, y = rng.standard_normal((50, 4)), rng.standard_normal((50, 2))

    def fitted():
        model = fb.Sequential(fb.Linear(4, 2), dtype="float64", seed=0)
        model.fit(x, y, loss=fb.MSELoss(), optimizer=fb.SGD(lr=schedule), epochs=3, batch_size=8, seed=1, progress=False)
        return model.state_dict()

    def looped():
        model, loss, optimizer = fb.Sequential(fb.Linear(4, 2), dtype="float64", seed=0), fb.MSELoss(), fb.SGD(lr=1.0)
        generator, step = np.random.default_rng(1), 0
        for _ in range(3):
            for xb, yb in fb.minibatches(x, y, batch_size=8, shuffle=True, seed=generator):
                model.backward(loss.value_and_grad(model.forward(xb), yb)[1])
                optimizer.lr = schedule(step)
                optimizer.step(model)
                step += 1
        return model.state_dict()

    one, other = fitted(), looped()
    assert all(np.allclose(one[name], other[name], rtol=1e-12, atol=0) for name in one)
