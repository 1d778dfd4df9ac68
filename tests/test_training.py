"""Training: fit, the loop it stands for, minibatches, History and seeds. Divergence is S23 in test_systems.py."""
import functools
import math
import threading

import numpy as np
import pytest

import fastbp as fb
import reference
import tolerance
from kernel_cases import isa  # noqa: F401  (a fixture)
from networks import DROPOUT, MLP, N, OPTIMIZERS, assert_same_bits, draw, loop

LOSSES = [
    ("MSELoss", {"reduction": "batchmean", "scale": 0.5}),
    ("L1Loss", {}),
    ("HuberLoss", {"delta": 0.5}),
    ("QuantileLoss", {"quantile": 0.7}),
    ("PoissonLoss", {}),
    ("BCELoss", {}),
    ("BCEWithLogitsLoss", {}),
    ("CrossEntropyLoss", {"label_smoothing": 0.1}),
]
LOGIT_LOSSES = LOSSES[-2:]


def make(table, *key):
    name, options = key
    return getattr(table, name)(**options)


def run(steps):
    """Exhausts the loop; the mean loss over rows"""
    values, rows = np.array(list(steps)).T
    return (values * rows).sum() / rows.sum()


def assert_follows(model, net, dtype, steps):
    for name, p in net.parameters.items():
        bound = tolerance.trajectory(dtype, steps) * np.abs(p).max()
        assert np.abs(model.parameters[name] - p).max() <= bound, name


# --- fit against the specification ------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_fit_follows_the_reference(build, loss, optimizer, weighted):
    x, y, w = draw(loss[0])
    w = w if weighted else None
    layers = MLP + [("Sigmoid",)] * (loss[0] == "BCELoss")
    model = build(layers, seed=3)
    net, update = reference.Network(layers, model.parameters), make(reference, *optimizer)
    cost = functools.partial(reference.LOSSES[loss[0]], **loss[1])
    model.fit(x, y, loss=make(fb, *loss), optimizer=make(fb, *optimizer), epochs=4, batch_size=8, seed=5,
              sample_weight=w)
    order = np.random.default_rng(5)
    for _ in range(4):
        for rows in reference.batches(N, 8, order):
            net.train_step(x[rows], y[rows], cost, update, None if w is None else w[rows])
    assert_follows(model, net, "float64", 24)


@pytest.mark.parametrize("clip_norm", [1e-3, 0.5, 1e3])
def test_clip_norm_follows_the_reference(build, clip_norm):
    x, y, _ = draw("MSELoss")
    model = build(MLP)
    net, update = reference.Network(MLP, model.parameters), reference.SGD(0.05, momentum=0.9)
    model.fit(x, y, loss=fb.MSELoss(), optimizer=fb.SGD(0.05, momentum=0.9), batch_size=8, shuffle=False,
              clip_norm=clip_norm)
    for rows in reference.batches(N, 8):
        net.train_step(x[rows], y[rows], reference.mse, update, clip_norm=clip_norm)
    assert_follows(model, net, "float64", 6)


# --- fit is the loop, bit for bit ---------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("loss", LOGIT_LOSSES, ids=str)
@pytest.mark.parametrize("layers", [MLP, DROPOUT], ids=["plain", "dropout"])
def test_fit_equals_the_loop_bit_for_bit(build, dtype, loss, optimizer, layers):
    x, y, w = draw(loss[0])
    fitted, looped = build(layers, dtype=dtype), build(layers, dtype=dtype)
    fitted.fit(x, y, loss=make(fb, *loss), optimizer=make(fb, *optimizer), epochs=3, batch_size=8, seed=5,
               sample_weight=w)
    run(loop(looped, x, y, make(fb, *loss), make(fb, *optimizer), 3, 8, 5, w))
    assert_same_bits(fitted, looped)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("batch_size", [1040, 300])
def test_updates_that_ride_on_the_gradients_equal_the_loop_bit_for_bit(build, no_grain, dtype, batch_size, threads, optimizer):
    """enough parameters for updates block by block: one of more rows and columns than a block has; rows of the batch in several chunks, or in one"""
    x, y, _ = draw("MSELoss", n=1100, inputs=1030)
    layers = [("Linear", 1030, 61), ("Tanh",), ("Linear", 61, 130, False), ("ReLU",), ("Linear", 130, 3)]
    fitted, looped = build(layers, dtype=dtype), build(layers, dtype=dtype)
    with fb.num_threads(threads):
        fitted.fit(x, y, loss=fb.MSELoss(), optimizer=make(fb, *optimizer), epochs=2, batch_size=batch_size, shuffle=False)
    run(loop(looped, x, y, fb.MSELoss(), make(fb, *optimizer), 2, batch_size))
    assert_same_bits(fitted, looped)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch_size", [400, 500, 512])
@pytest.mark.parametrize("outputs", [48, 49, 60, 61, 64, 97, 130])
@pytest.mark.parametrize("inputs", [300, 600])
def test_a_weight_that_does_not_fill_its_tiles_equals_the_loop_bit_for_bit(build, no_grain, dtype, inputs, outputs, batch_size, threads):
    """Panels of a copied operand reach as far as whole tiles do"""
    x, y, _ = draw("MSELoss", n=batch_size, inputs=inputs)
    layers = [("Linear", inputs, outputs), ("Tanh",), ("Linear", outputs, 3)]
    fitted, looped = build(layers, dtype=dtype), build(layers, dtype=dtype)
    with fb.num_threads(threads):
        fitted.fit(x, y, loss=fb.MSELoss(), optimizer=fb.SGD(0.05), epochs=1, batch_size=batch_size, shuffle=False)
    run(loop(looped, x, y, fb.MSELoss(), fb.SGD(0.05), 1, batch_size))
    assert_same_bits(fitted, looped)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("inputs, outputs, rows, batch_size", [(1, 31, 100, 3), (3, 17, 100, 3), (17, 16, 100, 3), (300, 31, 100, 3), (300, 40, 100, 3),
                                                               (40, 31, 13_000, 530)])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_first_weight_that_lies_transposed_in_long_calls_equals_the_loop_bit_for_bit(build, no_grain, dtype, threads, inputs, outputs, rows, batch_size, optimizer):
    """enough batches in one call for the weight and the optimizer's state to be turned, its rows in whole cache lines for several threads, a batch in
    one chunk or two; and on_batch_end, which sees every step, between two of them"""
    x, y, _ = draw("MSELoss", n=rows, inputs=inputs)
    layers = [("Linear", inputs, outputs), ("Tanh",), ("Linear", outputs, 3)]
    fitted, watched, looped = (build(layers, dtype=dtype) for _ in range(3))

    class Watch:
        def on_batch_end(self, model, batch, logs):
            pass

    with fb.num_threads(threads):
        fitted.fit(x, y, loss=fb.MSELoss(), optimizer=make(fb, *optimizer), epochs=2, batch_size=batch_size, shuffle=False)
        watched.fit(x, y, loss=fb.MSELoss(), optimizer=make(fb, *optimizer), epochs=2, batch_size=batch_size, shuffle=False, callbacks=[Watch()])
    run(loop(looped, x, y, fb.MSELoss(), make(fb, *optimizer), 2, batch_size))
    assert_same_bits(fitted, looped)
    assert_same_bits(watched, looped)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_several_weights_turn_side_by_side(no_grain, dtype, threads):
    """Two layers that read the input: bit for bit the loop"""
    def build():
        x = fb.Input(19)
        left, right = fb.tanh(fb.Linear(19, 33)(x)), fb.tanh(fb.Linear(19, 18)(x))
        return fb.Model(x, fb.Linear(51, 3)(fb.concat([left, right])), dtype=dtype, seed=1)

    x, y, _ = draw("MSELoss", n=100, inputs=19)
    fitted, looped = build(), build()
    with fb.num_threads(threads):
        fitted.fit(x, y, loss=fb.MSELoss(), optimizer=fb.Adam(0.01), epochs=2, batch_size=3, shuffle=False)
    run(loop(looped, x, y, fb.MSELoss(), fb.Adam(0.01), 2, 3))
    assert_same_bits(fitted, looped)


def test_parameters_are_whole_while_another_thread_trains(build, dtype):
    """With a learning rate of 0 nobody sees a difference, wherever weights lie meanwhile"""
    x, y, _ = draw("MSELoss", n=30_000, inputs=17)
    model = build([("Linear", 17, 31), ("Tanh",), ("Linear", 31, 3)], dtype=dtype)
    before, expected, looks = model.state_dict(), model.predict(x[:5]), 0
    trainer = threading.Thread(target=model.fit, args=(x, y), kwargs={"loss": fb.MSELoss(), "optimizer": fb.SGD(0.0), "epochs": 5, "batch_size": 3})
    trainer.start()
    while trainer.is_alive() or not looks:
        for name, value in before.items():
            np.testing.assert_array_equal(model.parameters[name], value)
        np.testing.assert_array_equal(model.predict(x[:5]), expected)
        looks += 1
    trainer.join()


def test_a_weight_with_two_readers_stays_as_it_is(dtype):
    def model():
        x, layer = fb.Input(3), fb.Linear(3, 3)
        return fb.Model(x, fb.Linear(3, 3)(layer.transpose()(fb.tanh(layer(fb.relu(layer(x)))))), dtype=dtype, seed=0)

    x, y, _ = draw("MSELoss", n=100, inputs=3)
    fitted, looped = model(), model()
    fitted.fit(x, y, loss=fb.MSELoss(), optimizer=fb.Adam(), epochs=2, batch_size=3, shuffle=False)
    run(loop(looped, x, y, fb.MSELoss(), fb.Adam(), 2, 3))
    assert_same_bits(fitted, looped)


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss[0] != "BCELoss"], ids=str)
@pytest.mark.parametrize("activation", sorted(reference.ACTIVATIONS))
def test_fused_layers_equal_the_loop_bit_for_bit(build, dtype, loss, activation):
    x, y, _ = draw(loss[0])
    layers = [("Linear", 5, 9), (activation,), ("Linear", 9, 3)] + [(activation,)] * (loss not in LOGIT_LOSSES)
    fitted, looped = build(layers, dtype=dtype), build(layers, dtype=dtype)
    fitted.fit(x, y, loss=make(fb, *loss), optimizer=fb.SGD(0.05), epochs=2, batch_size=8, shuffle=False)
    run(loop(looped, x, y, make(fb, *loss), fb.SGD(0.05), 2, 8))
    assert_same_bits(fitted, looped)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_optimizer_state_persists_across_fits(build, optimizer):
    x, y, _ = draw("MSELoss")
    once, twice = build(MLP), build(MLP)
    once.fit(x, y, loss=fb.MSELoss(), optimizer=make(fb, *optimizer), epochs=4, batch_size=8, shuffle=False)
    kept = make(fb, *optimizer)
    for _ in range(2):
        twice.fit(x, y, loss=fb.MSELoss(), optimizer=kept, epochs=2, batch_size=8, shuffle=False)
    assert_same_bits(once, twice)


LARGE = [("Linear", 5, 300), ("ReLU",), ("Linear", 300, 30), ("ReLU",), ("Linear", 30, 3)]   # enough parameters for an update that rides on the gradients


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("batch_size", [1, 7, 20, 21, 64, 512, 513])
def test_update_that_rides_on_the_gradients_is_the_step_after_them(isa, build, dtype, optimizer, batch_size):
    """Of few terms and many, one chunk and two; parameters bit for bit"""
    x, y, _ = draw("MSELoss", n=3 * min(batch_size, 200) + 400)
    fitted, looped = build(LARGE, dtype=dtype), build(LARGE, dtype=dtype)
    part = slice(2 * batch_size + 5)
    fitted.fit(x[part], y[part], loss=fb.MSELoss(), optimizer=make(fb, *optimizer), epochs=2, batch_size=batch_size, shuffle=False)
    run(loop(looped, x[part], y[part], fb.MSELoss(), make(fb, *optimizer), 2, batch_size))
    assert_same_bits(fitted, looped)


@pytest.mark.parametrize("batch_size", [7, 64])
def test_riding_step_that_overflows_is_undone(isa, build, dtype, batch_size):
    x, y, _ = draw("MSELoss", n=batch_size)
    model = build(LARGE, dtype=dtype)
    before = model.flat_parameters.copy()
    with pytest.raises(FloatingPointError, match="parameter"):
        model.fit(x, 1000 * y, loss=fb.MSELoss(), optimizer=fb.SGD(float(np.finfo(dtype).max)), batch_size=batch_size)
    assert model.flat_parameters.tobytes() == before.tobytes()


@pytest.mark.parametrize("batch_size", [7, 64])
@pytest.mark.parametrize("feature", [0, 50, 95])
def test_riding_step_that_overflows_in_one_tile_is_undone(isa, dtype, rng, batch_size, feature):
    model = fb.Sequential(fb.Linear(96, 96, bias=False), dtype=dtype, seed=0)
    x = np.zeros((batch_size, 96), dtype)
    x[:, feature] = 1
    before = model.flat_parameters.copy()
    with pytest.raises(FloatingPointError, match="parameter"):
        model.fit(x, np.full((batch_size, 96), 1e3, dtype), loss=fb.MSELoss(), optimizer=fb.SGD(float(np.finfo(dtype).max)), batch_size=batch_size)
    assert model.flat_parameters.tobytes() == before.tobytes()


class Idle:
    def on_epoch_end(self, model, epoch, logs):
        """Wants nothing, but epochs are run one by one for it"""


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batch_size", [7, 40])
def test_epochs_begun_together_are_those_run_one_by_one(build, shuffle, batch_size):
    x, label, w = draw("CrossEntropyLoss")
    options = {"loss": fb.CrossEntropyLoss(), "batch_size": batch_size, "shuffle": shuffle, "sample_weight": w, "metrics": ("accuracy",)}
    alone, together = build(DROPOUT, seed=2), build(DROPOUT, seed=2)
    optimizers, seeds = [fb.SGD(lambda step: 0.5 / (1 + step), momentum=0.9) for _ in range(2)], [np.random.default_rng(5) for _ in range(2)]
    histories = []
    for model, optimizer, seed, callbacks in zip((alone, together), optimizers, seeds, ([Idle()], []), strict=True):
        histories.append(model.fit(x, label, optimizer=optimizer, seed=seed, callbacks=callbacks, epochs=60, **options).history)
    assert histories[0] == histories[1] and len(histories[1]["accuracy"]) == 60
    assert_same_bits(alone, together)
    assert optimizers[0].steps == optimizers[1].steps and seeds[0].random() == seeds[1].random()


@pytest.mark.parametrize("rate, broken", [(1e15, "loss is"), (1.7e308, "a parameter")])
def test_divergence_is_told_alike_of_epochs_begun_together(build, rate, broken):
    x, y, _ = draw("MSELoss")
    said, models = [], [build(MLP, seed=2) for _ in range(2)]
    for model, callbacks in zip(models, ([Idle()], []), strict=True):
        with pytest.raises(FloatingPointError) as caught:
            model.fit(x, 1000 * y, loss=fb.MSELoss(), optimizer=fb.SGD(lambda step: 1e-3 if step < 150 else rate), seed=1, batch_size=7, epochs=90, callbacks=callbacks)
        said.append(str(caught.value))
    assert said[0] == said[1] and broken in said[0] and "epoch 1 " not in said[0]
    assert_same_bits(*models)


def test_lr_schedule_and_changed_lr_equal_in_fit_and_loop(build):
    x, y, _ = draw("MSELoss")
    fitted, looped = build(MLP), build(MLP)
    optimizers = [fb.SGD(lr=lambda step: 0.1 / (1 + step), momentum=0.9) for _ in range(2)]
    fitted.fit(x, y, loss=fb.MSELoss(), optimizer=optimizers[0], epochs=2, batch_size=8, shuffle=False)
    run(loop(looped, x, y, fb.MSELoss(), optimizers[1], 2, 8))
    assert_same_bits(fitted, looped)
    for optimizer in optimizers:
        optimizer.lr = 0.01
    fitted.fit(x, y, loss=fb.MSELoss(), optimizer=optimizers[0], batch_size=8, shuffle=False)
    run(loop(looped, x, y, fb.MSELoss(), optimizers[1], 1, 8))
    assert_same_bits(fitted, looped)


def test_batch_size_beyond_the_data_is_one_batch(build):
    x, y, _ = draw("MSELoss")
    large, exact = build(MLP), build(MLP)
    for model, batch_size in ((large, 1000), (exact, N)):
        model.fit(x, y, loss=fb.MSELoss(), optimizer=fb.SGD(0.05), epochs=2, batch_size=batch_size, shuffle=False)
    assert_same_bits(large, exact)


def test_equal_sample_weights_are_none(build):
    x, y, _ = draw("MSELoss")
    models = build(MLP), build(MLP)
    histories = [
        model.fit(x, y, loss=fb.MSELoss(), optimizer=fb.SGD(0.05), batch_size=8, shuffle=False, sample_weight=w)
        for model, w in zip(models, (None, np.full(N, 2.0)))
    ]
    assert_same_bits(*models)  # a factor of two changes no rounding
    values = [history.history["loss"] for history in histories]   # but weighted losses are summed row by row
    np.testing.assert_allclose(*values, rtol=tolerance.gauge_bound(np.float64, y.size))


def test_zero_sample_weight_removes_the_row(build):
    x, y, _ = draw("MSELoss")
    with_rows, without = build(MLP), build(MLP)
    keep = np.arange(N) % 3 != 0
    options = {"loss": fb.MSELoss(), "epochs": 5, "batch_size": N, "shuffle": False}
    with_rows.fit(x, y, optimizer=fb.SGD(0.05), sample_weight=keep.astype(float), **options)
    without.fit(x[keep], y[keep], optimizer=fb.SGD(0.05), **options)
    assert_follows(with_rows, without, "float64", 5)


def test_targets_of_one_output_may_be_flat(build):
    x, y, _ = draw("MSELoss", outputs=1)
    flat, column = build([("Linear", 5, 1)]), build([("Linear", 5, 1)])
    for model, target in ((flat, y[:, 0]), (column, y)):
        model.fit(x, target, loss=fb.MSELoss(), optimizer=fb.SGD(0.05), batch_size=8, shuffle=False)
    assert_same_bits(flat, column)


# --- minibatches --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, batch_size", [(1, 1), (1, 5), (7, 7), (7, 3), (12, 4), (13, 4)])
def test_minibatches_without_shuffle_are_slices(n, batch_size):
    x, y = np.arange(2.0 * n).reshape(n, 2), np.arange(n)
    parts = list(fb.minibatches(x, y, batch_size=batch_size, shuffle=False))
    assert [len(xb) for xb, _ in parts] == [len(rows) for rows in reference.batches(n, batch_size)]
    np.testing.assert_array_equal(np.concatenate([xb for xb, _ in parts]), x)
    np.testing.assert_array_equal(np.concatenate([yb for _, yb in parts]), y)


@pytest.mark.parametrize("as_generator", [False, True])
def test_minibatches_are_one_permutation_of_the_generator(as_generator):
    x, y = np.arange(94.0).reshape(47, 2), np.arange(47)
    seed = np.random.default_rng(3) if as_generator else 3
    mirror = np.random.default_rng(3)
    for _ in range(2):
        rows = reference.batches(47, 8, mirror)
        parts = list(fb.minibatches(x, y, batch_size=8, shuffle=True, seed=seed))
        for (xb, yb), expected in zip(parts, rows, strict=True):
            np.testing.assert_array_equal(xb, x[expected])
            np.testing.assert_array_equal(yb, y[expected])
        if not as_generator:
            mirror = np.random.default_rng(3)


def test_minibatches_with_the_seed_of_fit_give_its_batches(build):
    x, y, _ = draw("CrossEntropyLoss")
    fitted, looped = build(MLP), build(MLP)
    fitted.fit(x, y, loss=fb.CrossEntropyLoss(), optimizer=fb.Adam(), epochs=3, batch_size=8, seed=11)
    generator, loss, optimizer = np.random.default_rng(11), fb.CrossEntropyLoss(), fb.Adam()
    for _ in range(3):
        for xb, yb in fb.minibatches(x, y, batch_size=8, shuffle=True, seed=generator):
            looped.backward(loss.value_and_grad(looped.forward(xb), yb)[1])
            optimizer.step(looped)
    assert_same_bits(fitted, looped)


# --- History, validation, metrics, callbacks ----------------------------------------------------------------


@pytest.mark.parametrize("loss", [("MSELoss", {}), *LOGIT_LOSSES], ids=str)
def test_history_loss_is_the_running_loss_averaged_over_rows(build, dtype, loss):
    x, y, _ = draw(loss[0])
    fitted, looped = build(MLP, dtype=dtype), build(MLP, dtype=dtype)
    cost = make(fb, *loss)
    history = fitted.fit(x, y, loss=cost, optimizer=fb.SGD(0.05, weight_decay=0.1), epochs=3, batch_size=8, seed=5)
    rng, optimizer = np.random.default_rng(5), fb.SGD(0.05, weight_decay=0.1)
    expected = [run(loop(looped, x, y, cost, optimizer, 1, 8, rng)) for _ in range(3)]
    assert all(type(value) is float for value in history.history["loss"])
    np.testing.assert_allclose(history.history["loss"], expected, rtol=tolerance.EPOCH_SUM)


def test_running_accuracy_is_measured_before_each_update(build):
    x, y, _ = draw("CrossEntropyLoss")
    fitted, looped = build(MLP), build(MLP)
    right, loss, optimizer = 0, fb.CrossEntropyLoss(), fb.SGD(0.5)
    history = fitted.fit(x, y, loss=loss, optimizer=fb.SGD(0.5), batch_size=8, shuffle=False, metrics=("accuracy",))
    for xb, yb in fb.minibatches(x, y, batch_size=8, shuffle=False):
        out = looped.forward(xb)
        right += (out.argmax(axis=1) == yb).sum()
        looped.backward(loss.value_and_grad(out, yb)[1])
        optimizer.step(looped)
    assert history.history["accuracy"] == [pytest.approx(right / N, rel=tolerance.EPOCH_SUM)]


@pytest.mark.parametrize(
    "loss, last, decide",
    [
        ("CrossEntropyLoss", [], lambda out, y: out.argmax(axis=1) == y),
        ("BCEWithLogitsLoss", [], lambda out, y: (out > 0) == y),
        ("BCELoss", [("Sigmoid",)], lambda out, y: (out > 0.5) == y),
    ],
)
def test_accuracy_follows_the_loss(build, rng, loss, last, decide):
    x, _, _ = draw(loss)
    y = rng.integers(0, 3, N) if loss == "CrossEntropyLoss" else rng.integers(0, 2, (N, 3))
    model = build(MLP + last)
    scores = model.evaluate(x, y, loss=getattr(fb, loss)(), metrics=("accuracy",))
    assert scores["accuracy"] == pytest.approx(decide(model.predict(x), y).mean(), rel=tolerance.EPOCH_SUM)


def test_evaluate_is_the_loss_of_the_prediction(build):
    x, y, _ = draw("MSELoss", n=1000)
    model = build(MLP)
    expected = reference.mse(model.predict(x), y)[0]
    assert model.evaluate(x, y, loss=fb.MSELoss())["loss"] == pytest.approx(expected, rel=tolerance.CLOSED_FORM)


def test_metric_may_be_a_callable_of_target_and_prediction(build):
    def lead(target, prediction):
        assert target.shape == prediction.shape == (len(target), 3)
        return float((prediction - 2 * target).mean())

    x, y, _ = draw("MSELoss")
    model = build(MLP)
    leads = model.predict(x) - 2 * y
    whole, part = (pytest.approx(part.mean(), rel=tolerance.CLOSED_FORM) for part in (leads, leads[:9]))
    assert model.evaluate(x, y, loss=fb.MSELoss(), metrics=(lead,))["lead"] == whole
    history = model.fit(x, y, loss=fb.MSELoss(), optimizer=fb.SGD(lr=1e-300), batch_size=8, metrics=(lead,),
                        validation_data=(x[:9], y[:9])).history
    assert history["lead"] == [whole]
    assert history["val_lead"] == [part]


def test_validation_is_computed_after_each_epoch(build):
    x, y, _ = draw("CrossEntropyLoss")
    xv, yv = x[:20] + 1, y[:20]
    model, mirror = build(DROPOUT), build(DROPOUT)
    history = model.fit(x, y, loss=fb.CrossEntropyLoss(), optimizer=fb.SGD(0.1), epochs=3, batch_size=8, seed=5,
                        validation_data=(xv, yv), metrics=("accuracy",)).history
    rng, optimizer = np.random.default_rng(5), fb.SGD(0.1)
    for epoch in range(3):
        run(loop(mirror, x, y, fb.CrossEntropyLoss(), optimizer, 1, 8, rng))
        scores = mirror.evaluate(xv, yv, loss=fb.CrossEntropyLoss(), metrics=("accuracy",))
        assert history["val_loss"][epoch] == scores["loss"]
        assert history["val_accuracy"][epoch] == scores["accuracy"]
    assert_same_bits(model, mirror)
    assert set(history) >= {"loss", "val_loss", "accuracy", "val_accuracy"}


def test_callback_returning_true_stops_training(build):
    class Stop:
        def __init__(self):
            self.logs = []

        def on_epoch_end(self, model, epoch, logs):
            self.logs.append((epoch, logs["loss"]))
            return len(self.logs) == 2

    x, y, _ = draw("MSELoss")
    stop, model, short = Stop(), build(MLP), build(MLP)
    options = {"loss": fb.MSELoss(), "batch_size": 8, "shuffle": False}
    history = model.fit(x, y, optimizer=fb.SGD(0.05), epochs=9, callbacks=[stop], **options)
    short.fit(x, y, optimizer=fb.SGD(0.05), epochs=2, **options)
    assert [value for _, value in stop.logs] == history.history["loss"]
    assert stop.logs[1][0] - stop.logs[0][0] == 1
    assert_same_bits(model, short)


def test_custom_loss_trains_as_the_built_in_one(build):
    class Squared:
        def value_and_grad(self, prediction, target, sample_weight=None):
            return reference.mse(prediction, target, sample_weight)

    x, y, _ = draw("MSELoss")
    custom, built_in = build(MLP), build(MLP)
    for model, loss in ((custom, Squared()), (built_in, fb.MSELoss())):
        model.fit(x, y, loss=loss, optimizer=fb.Adam(), epochs=2, batch_size=8, shuffle=False)
    assert_follows(custom, built_in, "float64", 12)


# --- what fit and predict leave alone -----------------------------------------------------------------------


def test_fit_leaves_gradients_as_they_were(build):
    x, y, _ = draw("MSELoss")
    model = build(MLP)
    model.backward(model.forward(x))
    before = model.flat_gradients.copy()
    model.fit(x, y, loss=fb.MSELoss(), optimizer=fb.SGD(0.05, momentum=0.9), batch_size=8, clip_norm=0.1)
    assert before.any()
    np.testing.assert_array_equal(model.flat_gradients, before)


def test_fit_leaves_its_data_as_they_were(build):
    x, y, w = draw("MSELoss")
    copies = x.copy(), y.copy(), w.copy()
    build(MLP).fit(x, y, loss=fb.MSELoss(), optimizer=fb.SGD(0.05), batch_size=8, sample_weight=w)
    for array, copy in zip((x, y, w), copies):
        np.testing.assert_array_equal(array, copy)


def test_predict_leaves_a_pending_backward_valid(build, rng):
    x, _, _ = draw("MSELoss")
    plain, disturbed = build(DROPOUT), build(DROPOUT)
    dy = plain.forward(x)
    np.testing.assert_array_equal(disturbed.forward(x), dy)
    disturbed.predict(rng.normal(size=(200, 5)))
    np.testing.assert_array_equal(disturbed.backward(dy), plain.backward(dy))
    np.testing.assert_array_equal(disturbed.flat_gradients, plain.flat_gradients)


def test_forward_backward_and_predict_return_fresh_arrays(build, rng):
    model = build(MLP)
    x = rng.normal(size=(8, 5))
    for call in (model.predict, model.forward, lambda x: (model.forward(x), model.backward(np.ones((8, 3))))[1]):
        first = call(x)
        copy = first.copy()
        second = call(x + 1)
        np.testing.assert_array_equal(first, copy)
        assert not np.shares_memory(first, second)


def test_dropout_is_active_in_training_only(build):
    x, _, _ = draw("MSELoss")
    model = build(DROPOUT)
    np.testing.assert_array_equal(model.predict(x), model.predict(x))
    assert (model.forward(x) != model.predict(x)).any()


# --- seeds --------------------------------------------------------------------------------------------------


def fit_with(build, seed, layers=MLP, **options):
    x, y, _ = draw("MSELoss")
    model = build(layers)
    model.fit(x, y, loss=fb.MSELoss(), optimizer=fb.SGD(0.05), epochs=3, batch_size=8, seed=seed, **options)
    return model


def test_same_int_seed_gives_the_same_bits(build):
    assert_same_bits(fit_with(build, 5), fit_with(build, 5))


def test_int_seed_is_the_generator_made_of_it(build):
    assert_same_bits(fit_with(build, 5), fit_with(build, np.random.default_rng(5)))


def test_different_seeds_give_different_orders(build):
    assert (fit_with(build, 5).flat_parameters != fit_with(build, 6).flat_parameters).any()


def test_fit_without_seed_draws_its_own_order(build):
    assert (fit_with(build, None).flat_parameters != fit_with(build, None).flat_parameters).any()


@pytest.mark.parametrize("shuffle, permutations", [(True, 3), (False, 0)])
def test_fit_draws_one_permutation_per_epoch(build, shuffle, permutations):
    given, mirror = np.random.default_rng(5), np.random.default_rng(5)
    fit_with(build, given, DROPOUT, shuffle=shuffle)
    for _ in range(permutations):
        mirror.permutation(N)
    assert given.random() == mirror.random()


def test_model_seed_decides_initial_parameters(build, dtype):
    assert_same_bits(build(MLP, dtype=dtype, seed=1), build(MLP, dtype=dtype, seed=1))
    assert (build(MLP, dtype=dtype, seed=1).flat_parameters != build(MLP, dtype=dtype, seed=2).flat_parameters).any()


# --- extremes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [50.0, 800.0, 1e4])
def test_sigmoid_and_bce_in_fit_are_simplified_for_huge_logits(build, dtype, size):
    model = build([("Linear", 1, 1, False), ("Sigmoid",)], dtype=dtype)
    model.load_state_dict({"0.weight": [[size]]})
    x, y = np.array([[1.0], [-1.0], [1.0]]), np.array([0.0, 1.0, 1.0])
    history = model.fit(x, y, loss=fb.BCELoss(), optimizer=fb.SGD(lr=1.5), batch_size=3, shuffle=False)
    # p is 1, 0, 1 to the last bit: p - y is 1, -1, 0 and the gradient of the weight their product with x, averaged
    np.testing.assert_allclose(model.parameters["0.weight"], [[size - 1.5 * 2 / 3]], rtol=float(np.finfo(dtype).eps))
    assert math.isfinite(history.history["loss"][0]) and history.history["loss"][0] > 30


@pytest.mark.parametrize(("batch", "last"), [(61, 60), (253, 252), (300, 130), (700, 520), (1100, 1000)])
def test_room_for_a_batch_serves_every_smaller_one(batch, last):
    """Cache blocks of a smaller batch may be larger. The ragged last batch takes the step it takes alone, by the same bits."""
    rng = np.random.default_rng(3)
    x, y = (rng.standard_normal((batch + last, width)).astype(np.float32) for width in (1024, 3))
    together, apart = (fb.Sequential(fb.Linear(1024, 260), fb.ReLU(), fb.Linear(260, 3), seed=1) for _ in range(2))
    settings = {"loss": fb.MSELoss(), "epochs": 1, "shuffle": False}
    together.fit(x, y, optimizer=fb.SGD(lr=0.01), batch_size=batch, **settings)
    apart.fit(x[:batch], y[:batch], optimizer=fb.SGD(lr=0.01), batch_size=batch, **settings)
    apart.fit(x[batch:], y[batch:], optimizer=fb.SGD(lr=0.01), batch_size=last, **settings)
    assert np.array_equal(together.flat_parameters, apart.flat_parameters)


def test_fit_reuses_the_memory_of_the_fit_before(monkeypatch):
    """... without a trace of it in the result, and gives it back where it is more than is worth keeping"""
    rng = np.random.default_rng(5)
    x, y = (rng.standard_normal((40, width)).astype(np.float32) for width in (6, 2))
    used, fresh = (fb.Sequential(fb.Linear(6, 9), fb.Tanh(), fb.Linear(9, 2), seed=3) for _ in range(2))
    settings = {"loss": fb.MSELoss(), "epochs": 3, "batch_size": 8, "seed": 1}
    used.fit(x * 100, y * 100, optimizer=fb.Adam(lr=0.1), **settings)
    kept = used.workspace.nbytes
    assert kept > 0
    used.load_state_dict(fresh.state_dict())
    histories = [model.fit(x, y, optimizer=fb.Adam(lr=0.01), **settings).history for model in (used, fresh)]
    assert histories[0] == histories[1]
    assert np.array_equal(used.flat_parameters, fresh.flat_parameters)
    assert used.workspace.nbytes == kept
    monkeypatch.setattr(type(used.workspace), "KEPT_BYTES", kept - 1)
    used.fit(x, y, optimizer=fb.Adam(lr=0.01), **settings)
    assert used.workspace.nbytes == 0
