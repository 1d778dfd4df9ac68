"""The same bits: for every number of threads, batch, layout of the data, process and repetition."""
import os

import numpy as np
import pytest

import fastbp as fb

THREADS = (1, 2, 3, 4, 5, 7, 8, 16)
MLP = [("Linear", 37, 41), ("ReLU",), ("Linear", 41, 19), ("Tanh",), ("Linear", 19, 5)]
# (layers, loss, optimizer, rows, batch size, options of fit)
TRAININGS = {
    "sgd": (MLP, fb.CrossEntropyLoss, lambda: fb.SGD(0.1), 101, 32, {}),
    "momentum": (MLP, fb.CrossEntropyLoss, lambda: fb.SGD(0.1, momentum=0.9, nesterov=True), 101, 32, {}),
    "adam": (MLP, fb.CrossEntropyLoss, lambda: fb.Adam(weight_decay=0.1), 101, 32, {}),
    "adamw": (MLP, fb.CrossEntropyLoss, fb.AdamW, 101, 32, {}),
    "weighted": (MLP, fb.CrossEntropyLoss, lambda: fb.SGD(0.1), 101, 32, {"sample_weight": True}),
    "validated": (MLP, fb.CrossEntropyLoss, lambda: fb.SGD(0.1), 101, 32,
                  {"validation_data": True, "metrics": ("accuracy",)}),
    "one row": (MLP, fb.CrossEntropyLoss, lambda: fb.SGD(0.01), 13, 1, {}),
    "large batch": (MLP, fb.CrossEntropyLoss, lambda: fb.SGD(0.1), 2500, 1111, {}),
    "dropout": ([("Linear", 37, 41), ("GELU",), ("Dropout", 0.3), ("Linear", 41, 5)],
                fb.MSELoss, lambda: fb.SGD(0.1), 101, 32, {}),
    "one output": ([("Linear", 37, 67), ("SiLU",), ("Linear", 67, 1)], fb.BCEWithLogitsLoss, fb.Adam, 301, 64, {}),
    "one input": ([("Linear", 1, 130), ("Softplus",), ("Linear", 130, 3, False)],
                  fb.HuberLoss, lambda: fb.SGD(0.1), 101, 32, {}),
    "wide": ([("Linear", 70, 515), ("LeakyReLU",), ("Linear", 515, 130), ("ELU",), ("Linear", 130, 11)],
             fb.L1Loss, fb.Adam, 160, 64, {}),
    "sigmoid": ([("Linear", 37, 3), ("Sigmoid",)], fb.BCELoss, lambda: fb.SGD(0.1), 1001, 500, {}),
    "softmax": ([("Linear", 37, 23), ("Softmax",), ("Linear", 23, 9), ("Softmax",)], fb.MSELoss, fb.Adam, 101, 32, {}),
    "clipped": ([("Linear", 70, 260), ("ReLU",), ("Linear", 260, 5)], fb.CrossEntropyLoss, fb.AdamW, 101, 32, {"clip_norm": 0.5}),
    "active output": ([("Linear", 37, 200), ("Tanh",)], fb.MSELoss, lambda: fb.SGD(0.1), 101, 32, {}),
    "middle-sized": ([("Linear", 70, 160), ("ReLU",), ("Linear", 160, 161), ("Tanh",), ("Linear", 161, 130), ("Linear", 130, 5)],
                     fb.CrossEntropyLoss, lambda: fb.SGD(0.1), 101, 32, {}),
    "few outputs": ([("Linear", 10, 1024), ("ReLU",), ("Linear", 1024, 64), ("Tanh",), ("Linear", 64, 5)],
                    fb.CrossEntropyLoss, lambda: fb.SGD(0.1), 70, 20, {}),
    "deep": ([("Linear", 16, 16), ("ReLU",)] * 6 + [("Linear", 16, 4)], fb.CrossEntropyLoss, fb.Adam, 101, 32, {}),
}
every_training = pytest.mark.parametrize("name", TRAININGS)


def data(layers, loss, rows, dtype):
    """x, y, sample weights: the same for every call"""
    rng = np.random.default_rng(rows)
    inputs = layers[0][1]
    outputs = [layer for layer in layers if layer[0] == "Linear"][-1][2]
    x = rng.normal(size=(rows, inputs)).astype(dtype)
    y = rng.integers(0, outputs, rows) if loss is fb.CrossEntropyLoss else rng.random((rows, outputs)).astype(dtype)
    return x, y, rng.random(rows).astype(dtype) + 0.1


def train(build, fingerprint, name, dtype, arrange=lambda array: array):
    """SHA-256 of parameters, optimizer state and history after three epochs on the arrays as arranged"""
    layers, loss, make_optimizer, rows, batch_size, options = TRAININGS[name]
    x, y, w = (arrange(array) for array in data(layers, loss, rows, dtype))
    given = {"sample_weight": w, "validation_data": (x[:50], y[:50])}
    options = {key: given[key] if value is True else value for key, value in options.items()}
    model, optimizer = build(layers, dtype=dtype, seed=1), make_optimizer()
    history = model.fit(x, y, loss=loss(), optimizer=optimizer, epochs=3, batch_size=batch_size, seed=2, **options)
    return fingerprint(model.state_dict(), optimizer.state_dict(), history.history)


def check_bits_on_every_number_of_threads(run, counts=THREADS):
    """run() gives the same fingerprint on each of so many threads; a number may come more than once, for what happens in some runs only"""
    hashes = []
    for threads in counts:
        with fb.num_threads(threads):
            hashes.append(run())
    assert set(hashes) == {hashes[0]}, hashes


# --- threads ------------------------------------------------------------------------------------------------


@every_training
def test_training_is_the_same_for_every_number_of_threads(build, fingerprint, no_grain, dtype, name):
    hashes = {}
    for threads in THREADS:
        with fb.num_threads(threads):
            hashes[threads] = train(build, fingerprint, name, dtype)
    assert set(hashes.values()) == {hashes[1]}, hashes


@every_training
def test_training_is_the_same_with_and_without_grain(build, fingerprint, no_grain, dtype, name):
    """Whether a step is divided is decided by its work; the result is not"""
    from fastbp import _core

    with fb.num_threads(4):
        divided = train(build, fingerprint, name, dtype)
        _core._set_grain(1 << 60)
        whole = train(build, fingerprint, name, dtype)
        _core._set_grain(1)
    assert divided == whole


@pytest.mark.parametrize("widths", [(3, 40), (300, 200), (64, 500)])
def test_training_of_tied_weights_is_the_same_for_every_number_of_threads(fingerprint, no_grain, dtype, widths):
    """Two operations add to one gradient, and need not give an element of it to the same thread"""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, widths[0])).astype(dtype)

    def fit():
        inputs, encoder = fb.Input(widths[0]), fb.Linear(*widths)
        model = fb.Model(inputs, encoder.transpose()(fb.Sigmoid()(encoder(inputs))), dtype=dtype, seed=0)
        model.fit(x, x, loss=fb.MSELoss(), optimizer=fb.SGD(0.1), epochs=5, batch_size=32, seed=0)
        return fingerprint(model.flat_parameters)

    check_bits_on_every_number_of_threads(fit, (1, 2, 2, 2, 3, 4, 7))


def test_training_of_tied_weights_next_to_each_other_is_the_same_for_every_number_of_threads(fingerprint, no_grain, dtype):
    """Both operations have an input gradient in two sums, between which threads need not meet"""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, 3)).astype(dtype)

    def fit():
        inputs, tied = fb.Input(3), fb.Linear(190, 210)
        h = fb.Linear(3, 190)(inputs)
        model = fb.Model(inputs, fb.Linear(190, 3)(tied.transpose()(fb.ReLU()(tied(h)))), dtype=dtype, seed=0)
        model.fit(x, x, loss=fb.MSELoss(), optimizer=fb.SGD(0.1), epochs=5, batch_size=32, seed=0)
        return fingerprint(model.flat_parameters)

    check_bits_on_every_number_of_threads(fit, (1, 2, 2, 2, 3, 4, 7))


def test_training_of_a_residual_net_is_the_same_for_every_number_of_threads(fingerprint, no_grain, dtype):
    """Gradients of a value that three operations read, in two sums each"""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(96, 20)).astype(dtype), rng.normal(size=(96, 3)).astype(dtype)

    def fit():
        inputs = fb.Input(20)
        h = fb.Linear(20, 160)(inputs)
        for _ in range(3):
            h = h + fb.Linear(160, 160)(fb.ReLU()(fb.Linear(160, 160)(h)))
            h = fb.Tanh()(fb.Linear(160, 160)(h))
        model = fb.Model(inputs, fb.Linear(160, 3)(h + fb.Linear(160, 160)(h)), dtype=dtype, seed=0)
        model.fit(x, y, loss=fb.MSELoss(), optimizer=fb.SGD(0.01), epochs=3, batch_size=32, seed=0)
        return fingerprint(model.flat_parameters)

    check_bits_on_every_number_of_threads(fit)


TALL = {
    "sgd": (lambda: fb.SGD(0.1), {}),
    "momentum, decay": (lambda: fb.SGD(0.1, momentum=0.9, weight_decay=0.01), {}),
    "adam, clipped": (lambda: fb.Adam(0.01), {"clip_norm": 0.1}),
}


@pytest.mark.parametrize("optimizer", TALL)
@pytest.mark.parametrize("rows, last, width", [(513, 512, 40), (1100, 530, 40), (2600, 530, 40), (1100, 10, 200)])
def test_training_on_tall_batches_is_the_same_for_every_number_of_threads(fingerprint, no_grain, dtype, rows, last, width, optimizer):
    """Threads have whole chunks of rows for themselves: two, four and eight chunks, more threads than chunks, and a last batch with fewer, or so few that
    they would make a dx in halves"""
    rng = np.random.default_rng(0)
    n = rows + last
    x, y, w = rng.normal(size=(n, 21)).astype(dtype), rng.integers(5, size=n), rng.uniform(size=n).astype(dtype)

    def fit():
        inputs = fb.Input(21)
        h = fb.Tanh()(fb.Linear(21, width)(inputs))
        h = h + fb.ReLU()(fb.Linear(width, width)(h))
        model = fb.Model(inputs, fb.Linear(width, 5)(fb.Dropout(0.1)(h)), dtype=dtype, seed=0)
        rule, options = TALL[optimizer]
        history = model.fit(x, y, sample_weight=w, loss=fb.CrossEntropyLoss(), optimizer=rule(), epochs=3, batch_size=rows, seed=0, metrics=("accuracy",), **options)
        return fingerprint(model.flat_parameters, history.history)

    check_bits_on_every_number_of_threads(fit, (1, 2, 2, 3, 4, 7, 16))


@pytest.mark.parametrize("between", [fb.Tanh, lambda: fb.BatchNorm1d(17)], ids=["tied", "tied, normalised"])
@pytest.mark.parametrize("rows", [513, 1100])
def test_tall_batches_of_nets_that_threads_do_not_have_for_themselves_are_the_same(fingerprint, no_grain, dtype, rows, between):
    """Tied weights, whose gradients are sums over operations; and statistics of the whole batch"""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 17)).astype(dtype)

    def fit():
        inputs, tied = fb.Input(17), fb.Linear(17, 17)
        model = fb.Model(inputs, tied(between()(tied(inputs))), dtype=dtype, seed=0)
        model.fit(x, x, loss=fb.MSELoss(), optimizer=fb.SGD(0.1), epochs=3, batch_size=rows, seed=0)
        return fingerprint(model.flat_parameters)

    check_bits_on_every_number_of_threads(fit)


def test_steps_are_the_same_for_every_number_of_threads(build, fingerprint, no_grain, dtype):
    x, y, w = data(MLP, fb.CrossEntropyLoss, 300, dtype)

    def step():
        model, loss = build(MLP, dtype=dtype), fb.CrossEntropyLoss(label_smoothing=0.1)
        out = model.forward(x)
        value, dout = loss.value_and_grad(out, y, w)
        dx = model.backward(dout)
        scores = model.evaluate(x, y, loss=loss, metrics=("accuracy",))
        return fingerprint(out, value, dout, dx, model.flat_gradients, model.predict(x), scores)

    check_bits_on_every_number_of_threads(step)


COUNT = """
import os, numpy as np, fastbp as fb
from fastbp import _core
_core._set_grain(1)
model = fb.Sequential(fb.Linear(37, 41), fb.Linear(41, 5))
before = len(os.listdir("/proc/self/task"))
with fb.num_threads(16):
    model.fit(np.ones((32, 37)), np.ones((32, 5)), loss=fb.MSELoss(), optimizer=fb.SGD(0.1))
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads through /proc")
def test_small_steps_without_grain_run_on_every_thread(fresh_process):
    """Otherwise the tests of this section would prove nothing"""
    assert int(fresh_process(COUNT)) == 15


CHILD = """
import hashlib, numpy as np, fastbp as fb
from fastbp import _core
_core._set_grain(1)
rng = np.random.default_rng(0)
x, y = rng.normal(size=(201, 37)), rng.integers(0, 5, 201)
hashes = set()
for threads in {threads}:
    if threads:
        fb.set_num_threads(threads)
    model = fb.Sequential(fb.Linear(37, 41), fb.Tanh(), fb.Linear(41, 5), dtype="{dtype}", seed=0)
    model.fit(x, y, loss=fb.CrossEntropyLoss(), optimizer=fb.Adam(), epochs=2, batch_size=64, seed=0)
    hashes.add(hashlib.sha256(model.flat_parameters.tobytes()).hexdigest())
print(*hashes)
"""


def test_training_is_the_same_in_fresh_processes(fresh_process, dtype):
    code = CHILD.format(threads=(0,), dtype=dtype)
    environments = [{}, {"FASTBP_NUM_THREADS": "1"}, {"FASTBP_NUM_THREADS": "7"}, {"OMP_NUM_THREADS": "3"}]
    assert len({fresh_process(code, **environment) for environment in environments}) == 1


def test_baseline_training_is_the_same_for_every_number_of_threads(fresh_process, dtype):
    assert len(fresh_process(CHILD.format(threads=(1, 2, 3, 8), dtype=dtype), FASTBP_ISA="baseline").split()) == 1


# --- batches ------------------------------------------------------------------------------------------------

PREDICTORS = {
    "mlp": MLP,
    "one output": [("Linear", 37, 1), ("Sigmoid",)],
    "one input": [("Linear", 1, 70), ("GELU",), ("Linear", 70, 2)],
    "wide": [("Linear", 70, 515), ("SiLU",), ("Linear", 515, 130), ("Softplus",), ("Linear", 130, 11), ("Softmax",)],
    "long sums": [("Linear", 3001, 9, False), ("ELU",), ("Linear", 9, 3)],
}


@pytest.mark.parametrize("layers", PREDICTORS.values(), ids=PREDICTORS)
def test_row_of_a_prediction_does_not_depend_on_its_batch(build, rng, no_grain, dtype, layers):
    model = build(layers, dtype=dtype)
    x = rng.normal(size=(1500, layers[0][1])).astype(dtype)
    rows = np.concatenate([model.predict(x[i : i + 1]) for i in range(70)])
    for n in range(1, 71):
        np.testing.assert_array_equal(model.predict(x[:n]), rows[:n])
        np.testing.assert_array_equal(model.predict(x[70 - n : 70]), rows[70 - n :])
    for n in (127, 128, 129, 255, 257, 513, 1500):
        np.testing.assert_array_equal(model.predict(x[:n])[:70], rows)


@pytest.mark.parametrize("layers", PREDICTORS.values(), ids=PREDICTORS)
def test_predictions_are_the_same_for_every_number_of_threads(build, rng, no_grain, dtype, layers):
    """So few rows that a team shares out every operation, and so many that it shares out the rows"""
    model = build(layers, dtype=dtype)
    x = rng.normal(size=(600, layers[0][1])).astype(dtype)
    with fb.num_threads(1):
        expected = model.predict(x)
    for threads in THREADS:
        with fb.num_threads(threads):
            for n in (0, 1, 2, 31, 32, 33, 64, 65, 256, 257, 600):
                np.testing.assert_array_equal(model.predict(x[:n]), expected[:n], f"{n} rows, {threads} threads")


def test_predictions_of_a_graph_are_the_same_for_every_number_of_threads(rng, no_grain, dtype):
    """Stages, norms, values that several operations read, two outputs, and none but the input"""
    inputs = fb.Input(20)
    h = fb.LayerNorm(130)(fb.Linear(20, 130)(inputs))
    h = h + fb.Dropout(0.5)(fb.ReLU()(fb.BatchNorm1d(130)(fb.Linear(130, 130)(h))))
    model = fb.Model(inputs, [fb.Softmax()(fb.Linear(130, 7)(h)), fb.Tanh()(h), inputs], dtype=dtype, seed=0)
    x = rng.normal(size=(300, 20)).astype(dtype)
    with fb.num_threads(1):
        expected = model.predict(x)
    for threads in THREADS:
        with fb.num_threads(threads):
            for n in (1, 7, 33, 300):
                for out, all_rows in zip(model.predict(x[:n]), expected, strict=True):
                    np.testing.assert_array_equal(out, all_rows[:n], f"{n} rows, {threads} threads")


@pytest.mark.parametrize("layers", PREDICTORS.values(), ids=PREDICTORS)
def test_forward_equals_predict(build, rng, dtype, layers):
    model = build(layers, dtype=dtype)
    x = rng.normal(size=(33, layers[0][1]))
    np.testing.assert_array_equal(model.forward(x), model.predict(x))


def test_row_of_an_input_gradient_does_not_depend_on_its_batch(build, rng, no_grain, dtype):
    for layers in (MLP, [("Linear", 37, 160), ("ReLU",), ("Linear", 160, 130), ("Linear", 130, 5)]):
        model = build(layers, dtype=dtype)
        x, dy = rng.normal(size=(70, 37)).astype(dtype), rng.normal(size=(70, 5)).astype(dtype)

        def gradient(rows, model=model, x=x, dy=dy):
            model.forward(x[rows])
            return model.backward(dy[rows])

        singles = np.concatenate([gradient(slice(i, i + 1)) for i in range(70)])
        for n in range(1, 71):
            np.testing.assert_array_equal(gradient(slice(n)), singles[:n])


def test_prediction_of_permuted_rows_is_permuted(build, rng, dtype):
    model = build(MLP, dtype=dtype)
    x = rng.normal(size=(200, 37))
    order = rng.permutation(200)
    np.testing.assert_array_equal(model.predict(x[order]), model.predict(x)[order])


# --- layouts and repetition ---------------------------------------------------------------------------------


def fortran(array):
    return np.asfortranarray(array)


def strided(array):
    """Every second element of something larger, in every direction"""
    padded = np.full([2 * n for n in array.shape], 99, array.dtype)
    view = padded[tuple(slice(None, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def reversed_twice(array):
    """Negative strides"""
    backward = tuple(slice(None, None, -1) for _ in array.shape)
    return np.ascontiguousarray(array[backward])[backward]


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def misaligned(array):
    """At an odd address"""
    raw = np.empty(array.nbytes + 1, np.uint8)
    view = raw[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def byte_swapped(array):
    return array.astype(array.dtype.newbyteorder())


LAYOUTS = [fortran, strided, reversed_twice, read_only, misaligned, byte_swapped]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["sgd", "weighted", "validated", "one output", "one input", "sigmoid"])
def test_training_is_the_same_for_every_layout(build, fingerprint, dtype, name, layout):
    assert train(build, fingerprint, name, dtype, layout) == train(build, fingerprint, name, dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_steps_are_the_same_for_every_layout(build, dtype, layout):
    x, y, w = data(MLP, fb.CrossEntropyLoss, 33, dtype)
    plain, laid_out = build(MLP, dtype=dtype), build(MLP, dtype=dtype)
    loss = fb.CrossEntropyLoss()
    out = plain.forward(x)
    np.testing.assert_array_equal(laid_out.forward(layout(x)), out)
    np.testing.assert_array_equal(laid_out.predict(layout(x)), out)
    value, dout = loss.value_and_grad(out, y, w)
    assert loss.value_and_grad(layout(out), layout(y), layout(w))[0] == value
    np.testing.assert_array_equal(loss.value_and_grad(layout(out), layout(y), layout(w))[1], dout)
    np.testing.assert_array_equal(laid_out.backward(layout(dout)), plain.backward(dout))
    np.testing.assert_array_equal(laid_out.flat_gradients, plain.flat_gradients)


@pytest.mark.parametrize("offset", range(0, 64, 4))
def test_prediction_does_not_depend_on_the_address(build, rng, offset):
    model = build(MLP, dtype="float32")
    x = rng.normal(size=(33, 37)).astype("float32")
    raw = np.empty(x.nbytes + 64, np.uint8)
    shifted = raw[offset : offset + x.nbytes].view("float32").reshape(x.shape)
    shifted[...] = x
    np.testing.assert_array_equal(model.predict(shifted), model.predict(x))


@every_training
def test_repeated_training_is_the_same(build, fingerprint, dtype, name):
    assert len({train(build, fingerprint, name, dtype) for _ in range(3)}) == 1


def test_wider_inputs_are_rounded_once_at_the_entry(build, rng):
    model = build(MLP, dtype="float32")
    x = rng.normal(size=(33, 37))
    np.testing.assert_array_equal(model.predict(x), model.predict(x.astype("float32")))
