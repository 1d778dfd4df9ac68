"""Kernels beyond products and elementwise functions: losses, updates, whole trainings on every instruction set, `out`, and that nothing
outside the arrays is read or written. Products: test_gemm.py. Elementwise functions and softmax: test_elementwise.py.

Run as a script, this file is the grid of calls on arrays that touch pages which cannot be touched; see the end.
"""
import ctypes
import functools
import itertools
import mmap
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import mpmath as mp
import numpy as np
import pytest
import reference
from kernel_cases import (FUSED, ISAS, Framed, extended, for_every_number_of_threads, isa, placed, representable, same_bits, selected, team,  # noqa: F401
                          tile)
from test_reproducibility import TRAININGS, train
from tolerance import elementwise_ulp, ulp_error

import fastbp as fb
from fastbp import _core
from fastbp import kernels as K

# --- losses of single numbers, against 50 digits ------------------------------------------------------------------------

SIZES = [0, 1e-38, 1e-30, 1e-8, 0.25, 0.5, 1, 2.5, 17, 17.5, 18, 18.7, 19, 36, 37, 40, 87, 87.5, 88.5, 88.73, 89, 90, 103, 103.5, 104, 709, 745, 1e4, 1e15]


def numbers(dtype):
    sizes = np.array([*SIZES, np.finfo(dtype).max], dtype)
    return np.concatenate([sizes, -sizes])


def probabilities(dtype):
    small = np.array([0, 1e-38, 1e-30, 1e-13, 1e-8, 0.25, 0.5], dtype)
    return np.unique(np.concatenate([small, 1 - small, [np.finfo(dtype).eps / 2, 1 - np.finfo(dtype).eps / 2]]).astype(dtype))


def huber_value(d, delta):
    return d * d / 2 if abs(d) <= delta else delta * (abs(d) - delta / 2)


# name: (loss, value(p, t), gradient(p, t), predictions, targets)
ELEMENTWISE = {
    "mse": (fb.MSELoss(), lambda p, t: (p - t) ** 2, lambda p, t: 2 * (p - t), numbers, (0, 1, -0.5)),
    "l1": (fb.L1Loss(), lambda p, t: abs(p - t), lambda p, t: mp.sign(p - t), numbers, (0, 1, -0.5)),
    "huber": (fb.HuberLoss(2.5), lambda p, t: huber_value(p - t, 2.5), lambda p, t: min(max(p - t, -2.5), 2.5), numbers, (0, 1, -0.5)),
    "quantile": (fb.QuantileLoss(0.25), lambda p, t: (p - t) * (0.75 if p > t else -0.25), lambda p, t: 0 if p == t else 0.75 if p > t else -0.25, numbers,
                 (0, 1, -0.5)),
    "bce": (fb.BCELoss(), lambda p, t: -t * max(mp.log(p), -100) - (1 - t) * max(mp.log1p(-p), -100), lambda p, t: (p - t) / max(p * (1 - p), mp.mpf("1e-12")),
            probabilities, (0, 1, 0.25)),
    "bce_logits": (fb.BCEWithLogitsLoss(), lambda z, t: max(z, 0) - z * t + mp.log1p(mp.exp(-abs(z))), lambda z, t: 1 / (1 + mp.exp(-z)) - t,
                   numbers, (0, 1, 0.25)),
}


@functools.cache
def exact_loss(name, dtype):
    """[(prediction, target, value, gradient)], infinite where dtype has no such number. Losses take subnormal numbers for 0."""
    _, value, gradient, predictions, targets = ELEMENTWISE[name]
    tiny = np.finfo(dtype).smallest_normal
    with mp.workdps(50):
        return [(p, t, *(representable(extended(f(mp.mpf(float(p) if abs(p) >= tiny else 0.0), mp.mpf(t))), dtype) for f in (value, gradient)))
                for p in predictions(dtype) for t in targets]


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_loss_of_one_number_is_accurate_and_finite(isa, dtype, name):
    """Finite wherever the true value can be represented. The gradient of a logit is a difference, sigmoid(z) - t: its error is
    relative to its terms, that is to 1. What is smaller than the smallest normal number may be 0."""
    loss, tiny, eps = ELEMENTWISE[name][0], float(np.finfo(dtype).smallest_normal), float(np.finfo(dtype).eps)
    for p, t, value, gradient in exact_loss(name, dtype):
        actual, slope = loss.value_and_grad(np.array([[p]]), np.array([[t]], dtype))
        assert loss(np.array([[p]]), np.array([[t]], dtype)) == actual
        assert ulp_error(actual, value, dtype) <= elementwise_ulp("loss") or abs(actual - value) <= tiny, (p, t, actual, value)
        assert slope.dtype == dtype
        within = ulp_error(slope[0, 0], gradient, dtype) <= elementwise_ulp("loss") or abs(slope[0, 0] - gradient) <= tiny
        assert within or (name == "bce_logits" and abs(slope[0, 0] - gradient) <= elementwise_ulp("sigmoid") * eps), (p, t, slope, gradient)


def test_poisson_loss_of_one_number_is_accurate(isa, dtype):
    """To roundings of its terms, which cancel at the minimum; 0 log 0 is 0"""
    eps, tiny = float(np.finfo(dtype).eps), float(np.finfo(dtype).smallest_normal)
    for z, t in itertools.product(np.array([-1e4, -90, -3, -1e-8, 0, 0.5, 1, 17.5, 80], dtype), np.array([0, 1e-30, 0.25, 1, 2.5, 1e4], dtype)):
        value, slope = fb.PoissonLoss().value_and_grad(np.array([[z]]), np.array([[t]]))
        with mp.workdps(50):
            rate, y = mp.exp(mp.mpf(float(z))), mp.mpf(float(t))
            terms = [rate, -y * mp.mpf(float(z)), y * mp.log(y) if y else mp.mpf(0), -y]
            size = float(sum(map(abs, terms)))
            assert abs(value - float(sum(terms))) <= 4 * elementwise_ulp("loss") * eps * size + tiny
            assert abs(slope[0, 0] - float(rate - y)) <= 4 * elementwise_ulp("loss") * eps * float(rate + y) + tiny
    assert fb.PoissonLoss()(np.array([[-np.inf]]), np.array([[0.0]])) == 0
    assert np.isnan(fb.PoissonLoss()(np.array([[np.nan]]), np.array([[1.0]]))) and np.isnan(fb.QuantileLoss()(np.array([[np.nan]]), np.array([[1.0]])))


@pytest.mark.parametrize("limit", [2.0, 20.0])
def test_logits_losses_know_a_limit(isa, dtype, limit):
    """The value is that of probabilities within [e^-limit, 1 - e^-limit]; the gradient is the loss' own"""
    z = np.linspace(-40, 40, 81, dtype=dtype)
    rows = np.stack([z, -z], axis=1)
    for make, p, t in ((fb.BCEWithLogitsLoss, z[:, None], np.ones((81, 1), dtype)), (fb.CrossEntropyLoss, rows, np.zeros(81, int)),
                       (fb.CrossEntropyLoss, np.hstack([rows] + [np.full((81, 40), -1e3, dtype)]), np.zeros(81, int))):
        free, limited = make(), make()
        limited.limit = limit
        for i in range(len(p)):
            exact, gradient = free.value_and_grad(p[i : i + 1], t[i : i + 1])
            value, same = limited.value_and_grad(p[i : i + 1], t[i : i + 1])
            np.testing.assert_allclose(value, min(max(exact, -np.log1p(-np.exp(-limit))), limit), rtol=np.finfo(dtype).eps)
            np.testing.assert_array_equal(same, gradient)


@functools.cache
def exact_cross_entropy(dtype, smoothing):
    """[(logits, label, value, gradient, s - max)] at 50 digits"""
    rows = []
    sizes = [0, 1e-38, 1e-8, 1, 17.5, 18.5, 36.5, 87.5, 88.7, 90, 103.5, 745, 1e4, np.finfo(dtype).max]
    for z, pattern in itertools.product(np.array([*sizes, *(-size for size in sizes[1:])], dtype), ([1, 0], [1, 0, -1], [0] + [1] * 16)):
        s = (np.array(pattern, dtype) * z).astype(dtype)
        with mp.workdps(50):
            exact = [mp.mpf(float(v)) for v in s]
            high = max(exact)
            e = [mp.exp(v - high) for v in exact]
            for label in (0, len(s) - 1):
                t = [(1 - mp.mpf(smoothing)) * (j == label) + mp.mpf(smoothing) / len(s) for j in range(len(s))]
                value = mp.log(sum(e)) - sum(tj * (v - high) for tj, v in zip(t, exact, strict=True))
                gradient = [ej / sum(e) - tj for ej, tj in zip(e, t, strict=True)]
                arrays = (np.array(list(map(extended, vs))) for vs in (gradient, [ej / sum(e) for ej in e], [high - v for v in exact]))
                rows.append((s, label, extended(value), *arrays))
    return rows


@pytest.mark.parametrize("smoothing", [0.0, 0.125])
def test_cross_entropy_of_one_row_is_accurate_and_finite(isa, dtype, smoothing):
    """Values: s - max is rounded, and log(sum), the sum at least 1, passes the sum's relative error on as an absolute one. Gradients:
    softmax(s) to |s - max| + 8 roundings, minus the target."""
    info = np.finfo(dtype)
    u = info.eps / 2
    loss = fb.CrossEntropyLoss(label_smoothing=smoothing)
    for s, label, value, gradient, p, distance in exact_cross_entropy(dtype, smoothing):
        if distance.max() > info.max or (smoothing and distance.sum() > np.finfo(np.float64).max):
            continue  # the differences themselves, or their sum in double, which smoothing takes in, cannot be represented
        actual, slope = loss.value_and_grad(s[None], np.array([label]))
        assert loss(s[None], np.array([label])) == actual
        assert abs(actual - value) <= elementwise_ulp("loss") * info.eps * (1 + value), (s, label, actual, value)
        assert slope.dtype == dtype and slope.shape == (1, len(s))
        bound = (distance + 8) * u * p + 2 * u * np.abs(p - gradient) + info.smallest_normal
        assert (np.abs(slope[0] - gradient) <= bound).all(), (s, label, slope, gradient)
        t = np.eye(len(s), dtype=dtype)[[label]]
        assert abs(loss(s[None], t) - actual) <= elementwise_ulp("loss") * info.eps * (1 + value)


# --- losses of batches: the same bits however they are computed -----------------------------------------------------------

LOSSES = {"mse": fb.MSELoss, "batchmean": lambda **o: fb.MSELoss("batchmean", 0.5), "l1": fb.L1Loss, "huber": fb.HuberLoss, "quantile": lambda **o: fb.QuantileLoss(0.3, **o), "poisson": fb.PoissonLoss, "bce": fb.BCELoss,
          "bce_logits": fb.BCEWithLogitsLoss, "cross_entropy": lambda **o: fb.CrossEntropyLoss(0.1, **o), "labels": fb.CrossEntropyLoss}
every_loss = pytest.mark.parametrize("name", LOSSES)


def batch(name, dtype, rows, columns):
    """prediction, target, weights"""
    rng = np.random.default_rng(rows * 1000 + columns)
    p = rng.random((rows, columns)) if name == "bce" else 4 * rng.standard_normal((rows, columns))
    t = rng.integers(0, columns, rows) if name == "labels" else rng.random((rows, columns)).astype(dtype)
    return p.astype(dtype), t, (rng.random(rows) + 0.1).astype(dtype)


SHAPES = [(1, 1), (63, 3), (64, 1), (65, 17), (129, 67), (1000, 10), (17, 32), (33, 33)]


@every_loss
def test_loss_of_a_batch_equals_reference(isa, dtype, name):
    """Value and gradient, with and without weights"""
    of = {"batchmean": "mse", "labels": "cross_entropy"}.get(name, name)
    function = {"mse": reference.mse, "l1": reference.l1, "huber": reference.huber, "quantile": reference.quantile, "poisson": reference.poisson, "bce": reference.bce, "bce_logits": reference.bce_with_logits,
                "cross_entropy": reference.cross_entropy}[of]
    options = {"batchmean": {"reduction": "batchmean", "scale": 0.5}, "cross_entropy": {"label_smoothing": 0.1}, "quantile": {"quantile": 0.3}}.get(name, {})
    for shape in SHAPES:
        p, t, w = batch(name, dtype, *shape)
        for weights in (None, w):
            value, gradient = LOSSES[name]().value_and_grad(p, t, weights)
            exact, slope = function(p.astype(np.float64), t, weights, **options)
            eps = np.finfo(dtype).eps
            assert abs(value - exact) <= 4 * elementwise_ulp("loss") * eps * abs(exact) + shape[0] * eps**2  # sums add and weights multiply roundings
            scale = max(np.abs(slope).max(), (1 if weights is None else w.max() / w.min()) / len(p))
            assert np.abs(gradient - slope).max() <= 4 * elementwise_ulp("loss") * eps * scale


def test_losses_are_the_same_for_every_number_of_threads(isa, dtype):
    """And for a call that wants no gradient; rows are taken 64 at a time"""
    cases = []
    for name, shape in itertools.product(LOSSES, [(65, 17), (1000, 10)]):
        p, t, w = batch(name, dtype, *shape)
        cases.append((LOSSES[name](), p, t, w if len(p) == 65 else None))
    results = for_every_number_of_threads(lambda: [(*loss.value_and_grad(*case), loss(*case)) for loss, *case in cases])
    for result in results:
        for (value, gradient, alone), (first, expected, _) in zip(result, results[0], strict=True):
            assert value == alone == first and same_bits(gradient, expected)


@every_loss
def test_loss_is_the_same_for_every_instruction_set(dtype, name):
    for shape in SHAPES:
        p, t, w = batch(name, dtype, *shape)
        results = []
        for isa in FUSED:
            with selected(isa):
                results.append(LOSSES[name]().value_and_grad(p, t, w))
        assert all(value == results[0][0] and same_bits(gradient, results[0][1]) for value, gradient in results)


@every_loss
def test_gradient_of_a_row_does_not_depend_on_the_batch(isa, dtype, name):
    """Every width up to four vectors and three, anywhere in memory"""
    loss = LOSSES[name](reduction="sum")
    for columns in range(1, 4 * tile(isa, dtype).VL + 4, 1 if name != "batchmean" else 99):
        p, t, w = batch(name, dtype, 5, columns)
        if name == "batchmean":
            loss = fb.MSELoss("sum", 0.5)
        _, together = loss.value_and_grad(p, t)
        _, weighted = loss.value_and_grad(p, t, w)
        for i in range(5):
            alone = placed(p[i : i + 1], 8 * (columns + i) % 64)
            assert same_bits(loss.value_and_grad(alone, t[i : i + 1])[1], together[i : i + 1]), columns
            assert same_bits(loss.value_and_grad(alone, t[i : i + 1], w[i : i + 1])[1], weighted[i : i + 1]), columns


@every_loss
def test_gradient_of_one_bad_number_is_bad_in_exactly_its_row(isa, dtype, name):
    p, t, _ = batch(name, dtype, 7, 19)
    p[3, 17] = np.nan
    value, gradient = LOSSES[name]().value_and_grad(p, t)
    assert np.isnan(value)
    assert np.isfinite(np.delete(gradient, 3, 0)).all()
    assert np.isnan(gradient[3, 17])


def test_accuracy_counts_right_answers(isa, dtype, rng):
    """By argmax against labels and probabilities, the first of equals; by a threshold, elementwise"""
    for rows, columns in [(1, 1), (65, 3), (130, 37)]:
        p = rng.standard_normal((rows, columns)).round(1).astype(dtype)
        t = rng.random((rows, columns)).astype(dtype)
        label = rng.integers(0, columns, rows)
        assert _core.hits(np.nan, p, None, label) == (p.argmax(1) == label).sum()
        assert _core.hits(np.nan, p, t, None) == (p.argmax(1) == t.argmax(1)).sum()
        assert np.isclose(_core.hits(0.25, p, t, None), ((p > 0.25) == (t > 0.5)).mean(1).sum(), rtol=1e-12)


def test_first_nonfinite_number_is_found(isa, dtype):
    """Wherever it is; and none where numbers are only large"""
    width = tile(isa, dtype).VL
    for n in [*range(4 * width + 4), 4095, 4096, 4097, 9001]:
        x = np.full(n, np.finfo(dtype).max, dtype)
        x[::2] *= -1
        assert _core.first_nonfinite(x) == -1
        for at in {0, n // 2, n - 1, min(n - 1, 4096)} if n else ():
            for value in (np.nan, np.inf, -np.inf):
                bad = x.copy()
                bad[at] = bad[-1] = value
                assert _core.first_nonfinite(bad) == at


# --- updates ------------------------------------------------------------------------------------------------------------

# name: (kind, options, reference, states)
RULES = {
    "sgd": ("sgd", {}, lambda lr: reference.SGD(lr), 0),
    "decay": ("sgd", {"weight_decay": 0.1}, lambda lr: reference.SGD(lr, weight_decay=0.1), 0),
    "momentum": ("sgd", {"momentum": 0.9}, lambda lr: reference.SGD(lr, 0.9), 1),
    "nesterov": ("sgd", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}, lambda lr: reference.SGD(lr, 0.9, True, 0.1), 1),
    "rate inside": ("sgd", {"momentum": 0.9, "rate_inside": True}, lambda lr: reference.SGD(lr, 0.9), 1),  # the same while lr stays
    "rate inside, nesterov": ("sgd", {"momentum": 0.9, "rate_inside": True, "nesterov": True}, lambda lr: reference.SGD(lr, 0.9, True), 1),
    "adam": ("adam", {"weight_decay": 0.1}, lambda lr: reference.Adam(lr, weight_decay=0.1), 2),
    "adam, other betas": ("adam", {"betas": (0.8, 0.99), "eps": 1e-3}, lambda lr: reference.Adam(lr, (0.8, 0.99), 1e-3), 2),
    "adamw": ("adam", {"weight_decay": 0.1, "decoupled": True}, lambda lr: reference.AdamW(lr, weight_decay=0.1), 2),
}
every_rule = pytest.mark.parametrize("name", RULES)


def update(name, lr, step, grad, param, states):
    """In place; whether a new parameter is not finite"""
    kind, options, _, _ = RULES[name]
    states = [*states, None, None]
    return _core.UpdateRule(kind, [(0, param.size, 1.0, 1.0)], **options).step(lr, step, grad, param, *states[:2])


def ingredients(name, dtype, n, special=False):
    """grad, param, states"""
    rng = np.random.default_rng(n)
    arrays = rng.standard_normal((2 + RULES[name][3], n)).astype(dtype)
    arrays[3:] = np.abs(arrays[3:])
    if special:
        arrays[0] = np.resize(np.array([np.nan, 1, np.inf, 1e-40, -0.0, 2, 3, 5, 1e38, -7, 0], dtype), n)
        arrays[1] = np.resize(np.array([1, np.nan, 2, 1e-39, 0, -np.inf, 4], dtype), n)
    return arrays[0], arrays[1], list(arrays[2:])


@every_rule
def test_thousand_updates_drift_by_less_than_1e_5(isa, dtype, name):
    """From the float64 reference, relative to the largest parameter; research/reliability.md, N10. 1e-5 are 84 u per root of a step."""
    rng = np.random.default_rng(8)
    param = rng.standard_normal(37).astype(dtype)
    states = [np.zeros_like(param) for _ in range(RULES[name][3])]
    exact, rule = {"p": param.astype(np.float64)}, RULES[name][2](0.01)
    for step in range(1, 1001):
        grad = (rng.standard_normal(37) + 0.3).astype(dtype)
        assert not update(name, 0.01, step, grad, param, states)
        rule.step(exact, {"p": grad.astype(np.float64)})
    assert np.abs(param - exact["p"]).max() <= (1e-5 if dtype == "float32" else 1e-13) * np.abs(exact["p"]).max()


@pytest.mark.parametrize("name", ["sgd", "decay", "momentum", "adam", "adam, other betas"])
def test_offered_updates_are_these_rules(isa, dtype, name):
    grad, param, states = ingredients(name, dtype, 67)
    expected = [param.copy(), *(state.copy() for state in states)]
    update(name, 0.25, 3, grad, expected[0], expected[1:])
    options = dict(RULES[name][1])
    before = grad.copy()
    if RULES[name][0] == "sgd":
        assert K.sgd_update(param, grad, 0.25, *states, **options) is param
    else:
        assert K.adam_update(param, grad, *states, 3, 0.25, **options) is param
    assert all(same_bits(a, b) for a, b in zip([param, *states], expected, strict=True))
    assert same_bits(grad, before)


def test_velocity_may_be_none_or_unused(isa, dtype, rng):
    """Without momentum the velocity is the gradient, and the update the same as without one"""
    param, grad = rng.standard_normal((2, 19)).astype(dtype)
    velocity = np.full(19, 7, dtype)
    plain = K.sgd_update(param.copy(), grad, 0.5)
    assert same_bits(K.sgd_update(param.copy(), grad, 0.5, velocity), plain)
    assert same_bits(velocity, grad)


def test_plain_step_is_within_1_ulp(isa, dtype, rng):
    """Of w - lr g (docs/by-hand S20), for |w| >= 2 |lr g|, where the product's own rounding is no larger than the result's"""
    wide = np.longdouble if dtype == "float64" else np.float64
    w = (rng.uniform(1, 2, 100_003) * rng.choice([-1, 1], 100_003) * 2.0 ** rng.integers(-20, 20, 100_003)).astype(dtype)
    for lr in (0.1, 1.0, 1e-3):
        lr = float(np.array(lr, dtype))
        g = (w * rng.uniform(-0.499, 0.499, w.size) / lr).astype(dtype)
        exact = w.astype(wide) - wide(lr) * g.astype(wide)
        assert ulp_error(K.sgd_update(w.copy(), g, lr), exact, dtype).max() <= elementwise_ulp("sgd")


@every_rule
def test_update_of_an_element_does_not_depend_on_its_position(isa, dtype, name):
    longest = 4 * tile(isa, dtype).VL + 3
    for special in (False, True):
        grad, param, states = ingredients(name, dtype, longest, special)
        alone = [param.copy(), *(state.copy() for state in states)]
        for i in range(longest):
            update(name, 0.1, 2, grad[i : i + 1], alone[0][i : i + 1], [state[i : i + 1] for state in alone[1:]])
        for n in range(1, longest + 1):
            frames = [Framed((n,), dtype, at=8 * (n + 3 * j) % 64) for j in range(1 + len(states))]
            for frame, values in zip(frames, [param, *states], strict=True):
                frame.array[:] = values[:n]
            broken = update(name, 0.1, 2, placed(grad[:n], 8 * n % 64), frames[0].array, [frame.array for frame in frames[1:]])
            assert broken == (not np.isfinite(frames[0].array).all())
            assert all(same_bits(frame.array, values[:n]) for frame, values in zip(frames, alone, strict=True)), n
            assert all(frame.intact() for frame in frames), n


@every_rule
def test_update_says_when_a_parameter_is_not_finite(isa, dtype, name):
    n = 4 * tile(isa, dtype).VL + 3
    for i in range(n):
        for value in (np.nan, np.inf, -np.inf):
            grad, param, states = ingredients(name, dtype, n)
            grad[i] = value
            update_is_broken = update(name, 0.1, 1, grad, param, states)
            assert update_is_broken and np.array_equal(~np.isfinite(param), np.arange(n) == i)


@every_rule
def test_update_is_the_same_for_every_number_of_threads_and_instruction_set(dtype, name):
    """Shares are whole multiples of 16384 elements"""
    n = 7 * 16384 + 1
    given = ingredients(name, dtype, n)

    def updated():
        grad, param, states = given[0], given[1].copy(), [state.copy() for state in given[2]]
        update(name, 0.1, 2, grad, param, states)
        return [param, *states]

    results = {True: [], False: []}
    for isa in ISAS:
        with selected(isa):
            results[isa in FUSED] += for_every_number_of_threads(updated)
    for group in results.values():
        assert all(same_bits(a, b) for result in group for a, b in zip(result, group[0], strict=True))


def test_clipping_scales_the_gradient_to_the_norm(isa, dtype, rng):
    """By min(1, c/(norm + 1e-6)), for every length and number of threads with the same bits"""
    for n in [*range(1, 4 * tile(isa, dtype).VL + 4), 2 * 16384 + 5]:
        grad, param = rng.standard_normal((2, n)).astype(dtype)
        norm = float(np.sqrt((grad.astype(np.float64) ** 2).sum()))
        for clip in (norm / 3, 2 * norm):
            expected = param - grad.astype(np.float64) * min(1.0, clip / (norm + 1e-6))

            def clipped():
                g, p = grad.copy(), param.copy()
                _core.UpdateRule("sgd", [(0, n, 1.0, 1.0)], clip_norm=clip).step(1.0, 1, g, p, None, None)
                return p

            results = for_every_number_of_threads(clipped) if n > 1000 else [clipped()]
            assert all(same_bits(result, results[0]) for result in results)
            assert (np.abs(results[0] - expected) <= 2 * np.finfo(dtype).eps * (np.abs(param) + np.abs(grad))).all()


def test_slots_have_rates_and_decays_of_their_own(isa, dtype, rng):
    """A rate of 0 leaves its slot as it is; slots end anywhere within a vector"""
    param, grad = rng.standard_normal((2, 67)).astype(dtype)
    slots = [(0, 5, 1.0, 1.0), (5, 19, 0.0, 1.0), (24, 40, 0.5, 0.0), (64, 3, 2.0, 2.0)]
    new = param.copy()
    _core.UpdateRule("sgd", slots, weight_decay=0.5).step(0.25, 1, grad, new, None, None)
    expected = param.astype(np.float64)
    for offset, size, rate, decay in slots:
        part = slice(offset, offset + size)
        expected[part] -= 0.25 * rate * (grad[part].astype(np.float64) + 0.5 * decay * param[part].astype(np.float64))
    assert np.abs(new - expected).max() <= 4 * np.finfo(dtype).eps * np.abs(expected).max()
    assert same_bits(new[5:24], param[5:24])


def frozen(array):
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("words, call", [
    (["param", "writable"], lambda a: K.adam_update(frozen(a[0]), a[1], a[2], a[3], 1)),
    (["m", "writable"], lambda a: K.adam_update(a[0], a[1], frozen(a[2]), a[3], 1)),
    (["v", "writable"], lambda a: K.adam_update(a[0], a[1], a[2], frozen(a[3]), 1)),
    (["velocity", "writable"], lambda a: K.sgd_update(a[0], a[1], 0.1, frozen(a[2]), 0.9)),
    (["velocity", "overlap"], lambda a: K.sgd_update(a[0], a[1], 0.1, a[0], 0.9)),
    (["velocity", "overlap"], lambda a: K.sgd_update(a[0], a[1], 0.1, a[1], 0.9)),
    (["v", "overlap"], lambda a: K.adam_update(a[0], a[1], a[2], a[2], 1)),
    (["m", "overlap"], lambda a: K.adam_update(a[0], a[1], a[1], a[3], 1)),
    (["param", "overlap"], lambda a: K.sgd_update(a.ravel()[0:5], a.ravel()[4:9], 0.1)),
    (["velocity", "(5,)"], lambda a: K.sgd_update(a[0], a[1], 0.1, a[2, :4], 0.9)),
    (["m", "(1, 5)"], lambda a: K.adam_update(a[0], a[1], a[2:3], a[3], 1)),
    (["param", "contiguous"], lambda a: K.sgd_update(a[:, 0], a[:, 1], 0.1)),
    (["velocity", "contiguous"], lambda a: K.sgd_update(a[0], a[1], 0.1, np.ones((5, 2), a.dtype)[:, 0], 0.9)),
    (["velocity", "float16"], lambda a: K.sgd_update(a[0], a[1], 0.1, a[2].astype(np.float16), 0.9)),
])
def test_bad_argument_of_an_update_is_named_and_nothing_written(dtype, rng, words, call):
    arrays = rng.standard_normal((4, 5)).astype(dtype)
    before = arrays.copy()
    with pytest.raises((ValueError, TypeError)) as caught:
        call(arrays)
    assert all(word in str(caught.value) for word in words), caught.value
    assert same_bits(arrays, before)


def test_gradient_of_an_update_may_have_any_layout(dtype, rng):
    grad, param = rng.standard_normal((2, 7, 9)).astype(dtype)
    expected = K.sgd_update(param.copy(), grad, 0.1)
    for layout in (np.asfortranarray(grad), grad[::-1].copy()[::-1], frozen(grad), np.repeat(grad, 2, 1)[:, ::2]):
        assert same_bits(K.sgd_update(param.copy(), layout, 0.1), expected)
    scalar = np.array(3, dtype)
    assert K.sgd_update(scalar, np.array(2, dtype), 0.5) is scalar and scalar == 2
    assert K.sgd_update(np.empty((0, 3), dtype), np.empty((0, 3), dtype), 0.5).shape == (0, 3)


# --- everything together ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAININGS)
def test_training_is_the_same_for_every_instruction_set(build, fingerprint, dtype, name):
    hashes = set()
    for isa in FUSED:
        with selected(isa):
            hashes.add(train(build, fingerprint, name, dtype))
    assert len(hashes) == 1


# --- out ----------------------------------------------------------------------------------------------------------------


def arguments(dtype):
    """Arguments of the functions below, all in one piece of memory"""
    memory = np.random.default_rng(1).random(400).astype(dtype)
    start = itertools.accumulate([0, 24, 20, 5, 30])
    x, w, b, dy, s = (memory[i : i + int(np.prod(shape))].reshape(shape) for i, shape in zip(start, [(6, 4), (5, 4), (5,), (6, 5), (6, 5)], strict=True))
    return SimpleNamespace(memory=memory, x=x, w=w, b=b, dy=dy, s=s, labels=np.array([0, 1, 2, 3, 4, 0]), t=np.full((6, 5), 0.2, dtype))


# name: (call with out, shape of out, arguments that out must not overlap, those that it may be)
WITH_OUT = {
    "matmul": (lambda a, out: K.matmul(a.x, a.w.T, out), (6, 5), "xw", ""),
    "linear_forward": (lambda a, out: K.linear_forward(a.x, a.w, a.b, "tanh", out), (6, 5), "xwb", ""),
    "linear_backward dx": (lambda a, out: K.linear_backward(a.x, a.w, a.dy, (out, None, None))[0], (6, 4), ("x", "w", "dy"), ""),
    "linear_backward dw": (lambda a, out: K.linear_backward(a.x, a.w, a.dy, (None, out, None))[1], (5, 4), ("x", "dy"), ""),
    "linear_backward db": (lambda a, out: K.linear_backward(a.x, a.w, a.dy, (None, None, out))[2], (5,), ("dy",), ""),
    "weight_gradient": (lambda a, out: K.weight_gradient(a.x, a.dy, out), (5, 4), ("x", "dy"), ""),
    "bias_gradient": (lambda a, out: K.bias_gradient(a.dy, out), (5,), ("dy",), ""),
    "relu_forward": (lambda a, out: K.relu_forward(a.x, out), (6, 4), "x", "x"),
    "relu_backward": (lambda a, out: K.relu_backward(a.s, a.dy, out), (6, 5), ("s", "dy"), ("s", "dy")),
    "sigmoid_forward": (lambda a, out: K.sigmoid_forward(a.x, out), (6, 4), "x", "x"),
    "sigmoid_backward": (lambda a, out: K.sigmoid_backward(a.s, a.dy, out), (6, 5), ("s", "dy"), ("s", "dy")),
    "tanh_forward": (lambda a, out: K.tanh_forward(a.x, out), (6, 4), "x", "x"),
    "tanh_backward": (lambda a, out: K.tanh_backward(a.s, a.dy, out), (6, 5), ("s", "dy"), ("s", "dy")),
    "exp": (lambda a, out: K.exp(a.x, out), (6, 4), "x", "x"),
    "softmax": (lambda a, out: K.softmax(a.s, out), (6, 5), "s", "s"),
    "softmax_cross_entropy": (lambda a, out: K.softmax_cross_entropy(a.s, a.labels, out)[1], (6, 5), "s", ()),
}
every_out = pytest.mark.parametrize("name", WITH_OUT)


@every_out
def test_out_is_returned_filled_and_everything_else_left_alone(isa, dtype, name):
    call, shape, _, _ = WITH_OUT[name]
    a = arguments(dtype)
    before = a.memory.copy()
    expected = call(a, None)
    assert expected.shape == shape and expected.dtype == dtype and expected.flags.c_contiguous and expected.flags.owndata
    out = Framed(shape, dtype)
    assert call(a, out.array) is out.array
    assert same_bits(out.array, expected) and out.intact()
    assert same_bits(a.memory, before)


@every_out
def test_unfit_out_is_named_and_not_written(dtype, name):
    call, shape, _, _ = WITH_OUT[name]
    other = {"float32": "float64", "float64": "float32"}[dtype]
    for error, out in [
        (ValueError, np.zeros((*shape[:-1], shape[-1] + 1), dtype)), (ValueError, np.zeros((1, *shape), dtype)), (ValueError, np.zeros(shape, dtype).T[:, None]),
        (ValueError, frozen(np.zeros(shape, dtype))), (ValueError, np.zeros((*shape[:-1], 2 * shape[-1]), dtype)[..., ::2]),
        (ValueError, np.zeros(np.prod(shape) * 8 + 1, np.uint8)[1:].view(dtype)[: np.prod(shape)].reshape(shape)),
        (TypeError, np.zeros(shape, other)), (TypeError, np.zeros(shape, int)), (TypeError, np.zeros(shape, dtype).tolist()), (TypeError, 3),
        ((TypeError, ValueError), np.zeros(shape, np.dtype(dtype).newbyteorder("S"))),
    ]:
        with pytest.raises(error, match="out"):
            call(arguments(dtype), out)
        assert not isinstance(out, np.ndarray) or not out.any()


@every_out
def test_out_that_overlaps_an_argument_is_refused(dtype, name):
    """By any element; the elementwise functions may write over an argument itself"""
    call, shape, inputs, same = WITH_OUT[name]
    size = int(np.prod(shape))
    for argument in inputs:
        a = arguments(dtype)
        begin = (getattr(a, argument).ctypes.data - a.memory.ctypes.data) // a.memory.itemsize
        for start in (begin + 1, begin + getattr(a, argument).size - 1, begin - size + 1):
            if start >= 0:
                before = a.memory.copy()
                with pytest.raises(ValueError, match="out.*overlap"):
                    call(a, a.memory[start : start + size].reshape(shape))
                assert same_bits(a.memory, before), (argument, start)
    for argument in same:
        a = arguments(dtype)
        expected = call(a, None)
        assert same_bits(call(a, getattr(a, argument)), expected)


def test_softmax_cross_entropy_in_place(dtype):
    a = arguments(dtype)
    expected = K.softmax_cross_entropy(a.s, a.labels)
    value, gradient = K.softmax_cross_entropy(a.s, a.labels, a.s)
    assert same_bits(gradient, expected[1])
    assert value == expected[0]


def test_softmax_cross_entropy_refuses_out_over_its_target(dtype):
    a = arguments(dtype)
    with pytest.raises(ValueError, match="out.*overlap"):
        K.softmax_cross_entropy(a.s, a.t, a.t)


def test_empty_operands_may_lie_anyhow(dtype):
    """NumPy calls what is empty contiguous, backwards too."""
    backwards = np.zeros((5, 3), dtype)[::-1]
    assert K.matmul(np.ones((4, 5), dtype), backwards[:, :0]).shape == (4, 0)
    assert same_bits(K.matmul(backwards[:, :0], np.ones((0, 4), dtype)), np.zeros((5, 4), dtype))
    dx, dw, db = K.linear_backward(backwards[:, :0], np.ones((2, 0), dtype), np.ones((5, 2), dtype))
    assert dx.shape == (5, 0) and dw.shape == (2, 0) and same_bits(db, np.full(2, 5, dtype))


def test_a_state_must_be_an_array():
    param, grad = np.ones(3), np.ones(3)
    with pytest.raises(TypeError, match="velocity.*list"):
        K.sgd_update(param, grad, 0.1, [0.0, 0.0, 0.0], 0.5)
    with pytest.raises(TypeError, match="^m .*list"):
        K.adam_update(param, grad, [0.0, 0.0, 0.0], np.zeros(3), 1)
    assert (param == 1).all()


def test_numbers_of_an_update_are_looked_at_every_time():
    """The rule is kept by its numbers; True equals 1.0, [0.5] has no hash."""
    param, grad = np.ones(3), np.ones(3)
    K.sgd_update(param, grad, 0.1, weight_decay=1.0)
    for wrong in (True, [0.5], "1"):
        with pytest.raises(TypeError, match="weight_decay"):
            K.sgd_update(param, grad, 0.1, weight_decay=wrong)
        with pytest.raises(TypeError, match="eps"):
            K.adam_update(param, grad, np.zeros(3), np.zeros(3), 1, eps=wrong)
    with pytest.raises(ValueError, match="velocity"):
        K.sgd_update(param, grad, 0.1, momentum=0.5)


@pytest.mark.parametrize("B, I, O", [(0, 3, 2), (1, 1, 1), (5, 0, 3), (5, 3, 0), (7, 4, 3)])
def test_gradients_of_a_layer_are_those_of_its_parts(dtype, rng, B, I, O):
    x, w, dy = (rng.standard_normal(shape).astype(dtype) for shape in ((B, I), (O, I), (B, O)))
    parts = K.matmul(dy, w), K.weight_gradient(x, dy), K.bias_gradient(dy)
    for layout in (dy, np.asfortranarray(dy), np.repeat(dy, 2, axis=0)[::2]):   # the others are converted
        for got, part in zip(K.linear_backward(x, w, layout), parts, strict=True):
            assert same_bits(got, part)


def test_linear_backward_refuses_outputs_that_overlap(dtype):
    x, w, dy = np.random.default_rng(0).random((3, 4, 4)).astype(dtype)
    out = np.empty((4, 4), dtype)
    for outs in [(out, out, None), (out, None, out[1]), (None, out, out[1])]:
        with pytest.raises(ValueError, match="out.*overlap"):
            K.linear_backward(x, w, dy, outs)


def test_softmax_cross_entropy_survives_labels_in_the_memory_of_out(fresh_process):
    """In a process of its own: labels that change underway would send C anywhere"""
    assert fresh_process("""
import numpy as np
from fastbp import kernels as K
labels = np.array([1, 0, 1, 1])
s = np.arange(8, dtype=np.float32).reshape(4, 2)
expected = K.softmax_cross_entropy(s, labels)
try:
    value, gradient = K.softmax_cross_entropy(s, labels, labels.view(np.float32).reshape(4, 2))
    print(value == expected[0] and np.array_equal(gradient, expected[1]))
except ValueError as error:
    print("out" in str(error))
""") == "True"


# --- nothing outside the arrays -------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="needs mprotect")
@pytest.mark.parametrize("side", ["end", "start"])
def test_nothing_is_read_or_written_outside_the_arrays(side, tmp_path):
    """Every operand touches a page that must not be touched: with its end, then with its start"""
    progress = tmp_path / "progress"
    done = subprocess.run([sys.executable, __file__, side, str(progress)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"exit code {done.returncode} at: {progress.read_text().strip()}\n{done.stderr}"
    assert done.stdout.strip() == "done"


@pytest.mark.skipif(os.name != "posix", reason="needs mprotect")
@pytest.mark.parametrize("side", ["end", "start"])
def test_guard_pages_would_be_noticed(side, tmp_path):
    done = subprocess.run([sys.executable, __file__, side, str(tmp_path / "progress"), "prove"], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGSEGV


class Guarded:
    """Memory between two pages that cannot be touched"""

    def __init__(self, size):
        page = mmap.PAGESIZE
        self.first, self.end = page, page + -(-size // page) * page
        self.map = mmap.mmap(-1, self.end + page)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        libc = ctypes.CDLL(None, use_errno=True)
        for at in (0, self.end):
            if libc.mprotect(ctypes.c_void_p(base + at), ctypes.c_size_t(page), 0):
                raise OSError(ctypes.get_errno(), "mprotect")

    def array(self, side, shape, dtype):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.ndarray(shape, dtype, self.map, self.end - size if side == "end" else self.first)


def guarded_grid(side, note):
    """Calls every kernel on arrays of every kind of size; note(...) says what comes next"""
    pool = [Guarded(2**25) for _ in range(6)]

    def arrays(dtype, *shapes, fill=0.5):
        made = [memory.array(side, shape, dtype) for memory, shape in zip(pool, shapes, strict=False)]
        for array in made:
            array.fill(fill)
        return made

    for isa, dtype in itertools.product(ISAS, ("float32", "float64")):
        t = tile(isa, dtype)
        longest = 4 * t.VL + 3
        sizes = [(m, n, k) for m in (1, t.MR - 1, t.MR, t.MR + 1, 3 * t.MR + 1) for n in (1, t.VL - 1, t.VL + 1, t.NR - 1, t.NR, 4 * t.NR + t.VL + 1)
                 for k in (0, 1, 2, 3, 7, 8, 9, 33)]
        sizes += [(t.MC + 1, t.NR + 1, t.KC + 1), (3, t.NC + 1, t.KC + 1), (t.MC + 1, 5 * t.NR - 1, 2 * t.KC + 3), (1, 7, 1000), (t.MR, t.NR, t.KC), (2 * t.MR + 1, 4 * t.NR + 1, t.PAGE),
                  (t.PAGE, 4 * t.NR + 1, 33), (t.MR + 1, 48 * t.NR + 1, 33), (3 * t.MR + 1, 3 * t.VL // 4, 33), (t.MR - 1, t.VL + 3, t.PAGE)]
        with selected(isa):
            for threads, (m, n, k) in [*((1, size) for size in sizes), *((3, size) for size in sizes[::7])]:
                note("products", isa, dtype, threads, m, n, k)
                with team(threads):
                    a, b, bias, out = arrays(dtype, (m, k), (k, n), (n,), (m, n))
                    K.matmul(a, b, out)
                    a, b, bias, out = arrays(dtype, (m, k), (n, k), (n,), (m, n))
                    K.linear_forward(a, b, bias, ("relu", "tanh", "gelu", None)[m % 4], out)
                    a, b, bias, out = arrays(dtype, (k, m), (k, n), (n,), (m, n))
                    K.weight_gradient(b, a, out)
                    a, b, bias, out = arrays(dtype, (k, m), (n, k), (n,), (m, n))
                    K.matmul(a.T, b.T, out)
            for n, B in itertools.product([*range(1, 10 * t.VL + 2, 3), 8 * t.VL, 16 * t.VL, 131], (1, 5, 257)):
                note("column sums", isa, dtype, B, n)
                x, out = arrays(dtype, (B, n), (n,))
                K.bias_gradient(x, out)
            for n in range(1, longest + 1):
                for name, act in _core.ACTIVATIONS.items():
                    note(name, isa, dtype, n)
                    x, dy, out = arrays(dtype, (n,), (n,), (n,))
                    _core.map_forward(act, x, out, 0.5)
                    _core.map_backward(act, x, dy, out, 0.5)
                note("first_nonfinite", isa, dtype, n)
                assert _core.first_nonfinite(x) == -1
                for rows in (1, 3):
                    note("losses", isa, dtype, rows, n)
                    p, target, w, dp = arrays(dtype, (rows, n), (rows, n), (rows,), (rows, n))
                    label = pool[4].array(side, (rows,), np.int64)
                    label.fill(n - 1)
                    K.softmax(p, dp)
                    for loss in (fb.MSELoss(), fb.L1Loss(), fb.HuberLoss(), fb.BCELoss(), fb.BCEWithLogitsLoss(), fb.CrossEntropyLoss(0.1)):
                        for weights, gradient in itertools.product((None, w), (None, dp)):
                            loss.rule(n).value(p, target, None, weights, gradient)
                    for weights, gradient in itertools.product((None, w), (None, dp)):
                        loss.rule(n).value(p, None, label, weights, gradient)
                    _core.hits(np.nan, p, None, label)
                    _core.hits(np.nan, p, target, None)
                    _core.hits(0.5, p, target, None)
                for name, (kind, options, _, states) in RULES.items():
                    for clip in (0, 1e-3):
                        note("update", name, isa, dtype, n, clip)
                        g, p, s1, s2 = arrays(dtype, (n,), (n,), (n,), (n,))
                        _core.UpdateRule(kind, [(0, n, 1.0, 1.0)], clip_norm=clip, **options).step(0.1, 1, g, p, s1 if states else None, s2 if states > 1 else None)
            for rows, I, H, O in [(1, 1, 1, 1), (7, t.VL + 1, t.NR + 1, 3), (65, 33, 17, t.VL - 1)]:
                note("model", isa, dtype, rows, I, H, O)
                model = fb.Sequential(fb.Linear(I, H), fb.Tanh(), fb.Dropout(0.5), fb.Linear(H, O), fb.Softmax(), dtype=dtype, seed=0)
                x, y, dy, w = arrays(dtype, (rows, I), (rows, O), (rows, O), (rows,))
                model.predict(x)
                model.forward(x)
                model.backward(dy)
                model.fit(x, y, loss=fb.MSELoss(), optimizer=fb.Adam(), batch_size=3, seed=0, sample_weight=w, progress=False)


if __name__ == "__main__":
    place, path = sys.argv[1:3]
    with open(path, "wb", buffering=0) as file:
        def note(*case):
            os.pwrite(file.fileno(), repr(case).ljust(100).encode(), 0)

        if sys.argv[3:] == ["prove"]:
            signal.signal(signal.SIGSEGV, signal.SIG_DFL)
            edge = Guarded(100).array(place, (25,), np.float32)
            ctypes.string_at(edge.ctypes.data + (edge.nbytes if place == "end" else -1), 1)
        guarded_grid(place, note)
    print("done")
