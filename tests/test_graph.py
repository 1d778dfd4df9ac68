"""Graphs: random ones against NumPy, shared layers, several inputs and outputs. The systems of docs/by-hand/chain-rule.md are in test_systems.py."""
import copy
import itertools
import pickle

import numpy as np
import pytest
from kernel_cases import isa  # noqa: F401  (a fixture)
from tolerance import CLOSED_FORM, GRADIENT

import fastbp as fb
from fastbp import _core, compiler, io

def close(actual, exact):
    exact = np.asarray(exact)
    return np.all(np.abs(actual - exact) <= CLOSED_FORM * np.maximum(1, np.abs(exact)))


# --- random graphs against NumPy ------------------------------------------------------------------------------------

FUNCTIONS = {"tanh": np.tanh, "sigmoid": lambda v: 1 / (1 + np.exp(-v)), "sin": np.sin, "cos": np.cos, "square": np.square}


def draw_graph(seed, dtype="float64"):
    """A model of random operations on one or two inputs, and the same in NumPy: function(inputs, parameters by name)"""
    rng = np.random.default_rng(seed)
    widths = rng.integers(1, 6, rng.integers(1, 3)).tolist()
    nodes = [(fb.Input(width), lambda inputs, parameters, i=i: inputs[i]) for i, width in enumerate(widths)]
    layers = []
    for _ in range(rng.integers(3, 14)):
        (a, f), (b, g) = (nodes[i] for i in rng.integers(0, len(nodes), 2))
        kind = rng.choice(["linear", "again", "relu", "function", "binary", "number", "concat", "sum", "parameter", "divide"])
        if kind == "again" and layers:
            name, inputs_, layer = layers[rng.integers(len(layers))]
            fitting = [node for node in nodes if node[0].width == inputs_]
            a, f = fitting[rng.integers(len(fitting))]
            new = layer(a), lambda i, p, f=f, name=name: f(i, p) @ p[f"{name}.weight"].T + p[f"{name}.bias"]
        elif kind in ("linear", "again"):
            name, layer = f"dense{len(layers)}", None
            layer = fb.Linear(a.width, int(rng.integers(1, 7)), name=name)
            layers.append((name, a.width, layer))
            new = layer(a), lambda i, p, f=f, name=name: f(i, p) @ p[f"{name}.weight"].T + p[f"{name}.bias"]
            if rng.random() < 0.5:
                new = fb.Tanh()(new[0]), lambda i, p, f=new[1]: np.tanh(f(i, p))
        elif kind == "relu":
            new = fb.relu(a), lambda i, p, f=f: np.maximum(f(i, p), 0)
        elif kind == "function":
            name = str(rng.choice(list(FUNCTIONS)))
            new = getattr(fb, name)(0.5 * a), lambda i, p, f=f, name=name: FUNCTIONS[name](0.5 * f(i, p))
        elif kind == "binary":
            if a.width != b.width:
                b, g = fb.sum(b), lambda i, p, g=g: g(i, p).sum(axis=1, keepdims=True)
            sign = rng.choice(["+", "-", "*"])
            new = {"+": a + b, "-": b - a, "*": 0.5 * (a * b)}[sign], lambda i, p, f=f, g=g, sign=sign: (
                {"+": lambda v, w: v + w, "-": lambda v, w: w - v, "*": lambda v, w: 0.5 * (v * w)}[sign](f(i, p), g(i, p)))
        elif kind == "number":
            new = 1 - 2 * (a + 0.25) / 3, lambda i, p, f=f: 1 - 2 * (f(i, p) + 0.25) / 3
        elif kind == "concat":
            new = fb.concat([a, b, a]), lambda i, p, f=f, g=g: np.hstack([f(i, p), g(i, p), f(i, p)])
        elif kind == "sum":
            new = fb.sum(a), lambda i, p, f=f: f(i, p).sum(axis=1, keepdims=True)
        elif kind == "parameter":
            name, width = f"value{len(nodes)}", int(rng.choice([1, a.width]))
            new = a * fb.Parameter(width, init=lambda rng, shape: rng.normal(size=shape), name=name), lambda i, p, f=f, name=name: f(i, p) * p[name]
        else:
            new = a / (1 + fb.square(b) if a.width == b.width else 2 - fb.tanh(fb.sum(b))), lambda i, p, f=f, g=g, same=a.width == b.width: (
                f(i, p) / (1 + g(i, p) ** 2 if same else 2 - np.tanh(g(i, p).sum(axis=1, keepdims=True))))
        nodes.append(new)
    output, function = fb.concat([node for node, _ in nodes]), lambda i, p: np.hstack([f(i, p) for _, f in nodes])
    head = fb.Linear(output.width, 2, name="head")
    model = fb.Model([node for node, _ in nodes[: len(widths)]], head(fb.tanh(output)), dtype=dtype, seed=seed)
    return model, lambda i, p: np.tanh(function(i, p)) @ p["head.weight"].T + p["head.bias"], widths


def draw_data(widths, rows, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(rows, width)) for width in widths], rng.normal(size=(rows, 2))


every_graph = pytest.mark.parametrize("seed", range(60))


@every_graph
def test_random_graph_is_its_expression(isa, seed):
    model, function, widths = draw_graph(seed)
    x, _ = draw_data(widths, 11)
    exact = function(x, model.parameters)
    assert close(model.predict(x), exact) and close(model.forward(x), exact)


@every_graph
def test_gradients_of_a_random_graph_are_those_of_differences(isa, seed):
    model, function, widths = draw_graph(seed)
    x, y = draw_data(widths, 5)
    step, rng = 1e-5, np.random.default_rng(1)
    out = model.forward(x)
    dx = model.backward(out - y)

    def loss():
        return 0.5 * np.sum((function(x, model.parameters) - y) ** 2)

    pairs = [(name, model.parameters[name], model.gradients[name]) for name in model.parameters] + [(f"x{i}", part, dx[i]) for i, part in enumerate(x)]
    for name, array, gradient in pairs:
        for index in rng.integers(0, array.size, 4):
            at, old = np.unravel_index(index, array.shape), array.flat[index]
            values = []
            for delta in (step, -step):
                array[at] = old + delta
                values.append(loss())
            array[at] = old
            numeric = (values[0] - values[1]) / (2 * step)
            kink = abs(numeric - gradient[at]) > 0.01 * max(1, abs(numeric))   # a ReLU that is hit: its difference is half right
            assert kink or abs(gradient[at] - numeric) <= 1e3 * GRADIENT * max(1, abs(numeric)), name
            assert not kink or "relu" in repr(model.nodes).lower(), name


@every_graph
def test_fit_of_a_random_graph_is_the_loop_bit_for_bit_on_any_number_of_threads(seed, no_grain):
    _, _, widths = draw_graph(seed)
    x, y = draw_data(widths, 40)
    looped = draw_graph(seed)[0]
    loss, optimizer = fb.MSELoss(), fb.Adam(lr=1e-3)
    for _ in range(2):
        for i in range(0, 40, 16):
            _, dout = loss.value_and_grad(looped.forward([part[i : i + 16] for part in x]), y[i : i + 16])
            looped.backward(dout)
            optimizer.step(looped)
    for threads in (1, 2, 5):
        fitted = draw_graph(seed)[0]
        with fb.num_threads(threads):
            fitted.fit(x, y, loss=fb.MSELoss(), optimizer=fb.Adam(lr=1e-3), epochs=2, batch_size=16, shuffle=False)
        for name, value in looped.parameters.items():
            assert fitted.parameters[name].tobytes() == value.tobytes(), (name, threads)


@every_graph
def test_random_graph_survives_file_pickle_copy_and_dtype(seed, tmp_path):
    model, _, widths = draw_graph(seed)
    x, _ = draw_data(widths, 7)
    exact = model.predict(x)
    model.save(tmp_path / "model.safetensors")
    for other in (fb.load(tmp_path / "model.safetensors"), pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert list(other.parameters) == list(model.parameters) and other.predict(x).tobytes() == exact.tobytes()
        assert other.config() == model.config()
    single = model.astype("float32")
    np.testing.assert_allclose(single.predict(x), exact, rtol=1e-3, atol=1e-3)


@every_graph
def test_no_gradient_is_overwritten_while_a_late_worker_may_read_it(seed):
    """dw is made from dy after the barrier that ends dx: until the next barrier nobody may write where dy lies. A race that bits seldom show."""
    model, _, _ = draw_graph(seed)
    _, values, operations, *_ = compiler.compile_graph(model.nodes, model.outputs, dtype=model.dtype, capacity=8, training=True, places=model._places,
                                                       parameters=model.flat_parameters.size, input_gradient=seed % 2 == 0)
    room = {i: range(gradient, gradient + 8 * width) for i, (width, _, gradient) in enumerate(values)}
    read = set()   # gradients that some worker may still be reading
    for _, group in itertools.groupby(reversed(operations), key=lambda operation: operation[-1]):   # stages
        stage = list(group)
        written = {v for _, x, z, _, _, _, _, dx, dz, *_ in stage for v, mode in ((x, dx), (z, dz)) if mode in (_core.FIRST, _core.MORE)}
        read |= {operation[3] for operation in stage}
        for v, w in itertools.product(written, read):
            assert v == w or room[v].stop <= room[w].start or room[w].stop <= room[v].start
        if written:
            read.clear()
        read |= {y for kind, _, _, y, *_ in stage if kind in (_core.OPERATIONS["dense"], _core.OPERATIONS["parameter"])}


def entries(value, path=()):
    """The paths of everything inside nested dicts and lists"""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*path, key)
        yield from entries(value[key], (*path, key))


def test_a_file_with_any_wrong_entry_is_refused_or_of_another_model(tmp_path):
    x, y, shared = fb.Input(3), fb.Input(2), fb.Linear(3, 4)
    model = fb.Model([x, y], [fb.tanh(shared(x)) * fb.sum(y) + fb.Parameter(4), shared.transpose()(shared(x))], seed=0)
    for path in entries(model.config()):
        for wrong in (None, -1, 10**9, 1.5, "x", [], {}, True, 2**70, [0, 1, 2]):
            config = copy.deepcopy(model.config())
            place = config
            for key in path[:-1]:
                place = place[key]
            if place[path[-1]] == wrong:
                continue
            place[path[-1]] = wrong
            (tmp_path / "model").write_bytes(io._serialise(model.state_dict(), config))
            try:
                assert fb.load(tmp_path / "model").config() == config   # e.g. another seed
            except ValueError as error:
                assert str(error).startswith("path: expected a fastbp model file")


def test_a_deep_graph_compiles_trains_and_pickles():
    x = fb.Input(3)
    node, layer = x, fb.Linear(3, 3, init="zeros")
    for _ in range(1500):
        node = node + layer(node) * 0.001
    model = fb.Model(x, node, dtype="float64")
    model.fit(np.ones((4, 3)), np.ones((4, 3)), loss=fb.MSELoss(), optimizer=fb.SGD(0.01))
    assert pickle.loads(pickle.dumps(model)).predict(np.ones((2, 3))).shape == (2, 3)


# --- what people build ------------------------------------------------------------------------------------------------

def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_gradient_of_a_shared_layer_is_the_sum_over_its_uses():
    x, shared = fb.Input(4), fb.Linear(4, 4)
    twice = fb.Model(x, shared(fb.tanh(shared(x))), dtype="float64", seed=0)
    x = fb.Input(4)
    apart = fb.Model(x, fb.Linear(4, 4, name="b")(fb.tanh(fb.Linear(4, 4, name="a")(x))), dtype="float64", seed=0)
    state = twice.state_dict()
    apart.load_state_dict({f"{name}.{part}": state[f"linear_0.{part}"] for name in "ab" for part in ("weight", "bias")})
    for model in (twice, apart):
        model.forward(numbers(6, 4))
        model.backward(numbers(6, 4, seed=1))
    for part in ("weight", "bias"):
        assert close(twice.gradients[f"linear_0.{part}"], apart.gradients[f"a.{part}"] + apart.gradients[f"b.{part}"])


def test_tied_autoencoder(no_grain):
    x, encoder = fb.Input(40), fb.Linear(40, 300, name="encoder")
    code = fb.Tanh()(encoder(x))
    model = fb.Model(x, encoder.transpose(name="decoder")(code), dtype="float64", seed=0)
    assert {name: value.shape for name, value in model.parameters.items()} == {
        "encoder.weight": (300, 40), "encoder.bias": (300,), "decoder.bias": (40,)}
    data = numbers(30, 40)
    w, b, c = model.parameters["encoder.weight"], model.parameters["encoder.bias"], model.parameters["decoder.bias"]
    assert close(model.predict(data), np.tanh(data @ w.T + b) @ w + c)
    assert fb.check_gradients(model, fb.MSELoss(), data[:4], data[:4]).ok
    states = []
    for threads in (1, 2, 5):
        other = copy.deepcopy(model)
        with fb.num_threads(threads):
            history = other.fit(data, data, loss=fb.MSELoss(), optimizer=fb.Adam(lr=1e-2), epochs=20, batch_size=10, seed=1).history
        states.append({name: value.tobytes() for name, value in other.state_dict().items()})
    assert states[0] == states[1] == states[2] and history["loss"][-1] < 0.5 * history["loss"][0]
    assert close(model.predict(data, outputs=code), np.tanh(data @ w.T + b))


def test_a_called_model_is_inlined_with_its_parameters():
    inner = fb.Sequential(fb.Linear(4, 5), fb.Tanh(), fb.Linear(5, 3), dtype="float64", seed=3)
    a, b = fb.Input(4), fb.Input(4)
    towers = fb.Model([a, b], inner(a) - inner(b), dtype="float64", seed=4)   # siamese: one set of weights
    u, v = numbers(6, 4), numbers(6, 4, seed=1)
    assert len(towers.parameters) == 4
    assert close(towers.predict([u, v]), inner.predict(u) - inner.predict(v))
    towers.fit([u, v], numbers(6, 3), loss=fb.MSELoss(), optimizer=fb.SGD(0.1))
    assert not close(towers.parameters["linear_0.weight"], inner.parameters["0.weight"])


def test_several_outputs_come_and_go_as_lists():
    x = fb.Input(4)
    h = fb.ReLU()(fb.Linear(4, 6)(x))
    model = fb.Model(x, [fb.Linear(6, 2)(h), h, fb.sum(h)], dtype="float64", seed=0)
    data = numbers(5, 4)
    out = model.forward(data)
    assert [part.shape for part in out] == [(5, 2), (5, 6), (5, 1)]
    assert all(np.array_equal(a, b) for a, b in zip(out, model.predict(data), strict=True))
    dx = model.backward([np.ones((5, 2)), np.zeros((5, 6)), np.zeros((5, 1))])
    assert close(dx, model.jacobian(data)[:, :2].sum(axis=1))


@pytest.mark.parametrize("weights", [None, [0.3, 2.0]])
def test_every_output_has_its_loss(weights):
    """fit of two heads is the loop over the weighted sum of their losses"""
    def build():
        a, b = fb.Input(4), fb.Input(2)
        h = fb.Tanh()(fb.Linear(4, 6)(a)) * fb.sigmoid(fb.Linear(2, 6)(b))
        return fb.Model([a, b], [fb.Linear(6, 3)(h), fb.Linear(6, 1)(h)], dtype="float64", seed=0)

    x, labels, y = [numbers(20, 4), numbers(20, 2, seed=1)], np.arange(20) % 3, numbers(20, 1, seed=2)
    losses, fitted, looped = [fb.CrossEntropyLoss(), fb.MSELoss()], build(), build()
    history = fitted.fit(x, [labels, y], loss=losses, loss_weights=weights, optimizer=fb.SGD(0.1), epochs=3, batch_size=8, shuffle=False,
                         validation_data=(x, [labels, y])).history
    optimizer = fb.SGD(0.1)
    for _ in range(3):
        for i in range(0, 20, 8):
            out = looped.forward([part[i : i + 8] for part in x])
            grads = [w * loss.value_and_grad(o, t[i : i + 8])[1] for w, loss, o, t in zip(weights or [1, 1], losses, out, [labels, y], strict=True)]
            looped.backward(grads)
            optimizer.step(looped)
    for name, value in looped.parameters.items():
        assert np.array_equal(fitted.parameters[name], value)
    total = fitted.evaluate(x, [labels, y], loss=losses, loss_weights=weights)["loss"]
    assert total == history["val_loss"][-1]
    assert close(total, sum(w * loss(o, t) for w, loss, o, t in zip(weights or [1, 1], losses, fitted.predict(x), [labels, y], strict=True)))


def test_check_gradients_takes_several_inputs():
    a, b = fb.Input(3), fb.Input(2)
    model = fb.Model([a, b], fb.tanh(fb.Linear(3, 2)(a)) / (2 + fb.sin(b)), seed=0)
    report = fb.check_gradients(model, fb.MSELoss(), [numbers(4, 3), numbers(4, 2)], numbers(4, 2, seed=1))
    assert report.ok and [row.name for row in report.rows][-2:] == ["input 0", "input 1"]


def test_predict_computes_other_nodes():
    x = fb.Input(4)
    h = fb.Tanh()(fb.Linear(4, 6)(x))
    model = fb.Model(x, fb.Linear(6, 2)(h), seed=0)
    data = numbers(5, 4).astype("f")
    one, two = model.predict(data, outputs=[h, x])
    assert one.shape == (5, 6) and np.array_equal(two, data) and np.array_equal(model.predict(data, outputs=h), one)


def test_names_follow_the_first_mention():
    x = fb.Input(3)
    a, b = fb.Linear(3, 3), fb.Linear(3, 3)
    y = b(x)
    model = fb.Model(x, a(y) + y * fb.Parameter(3) + fb.Parameter((), name="shift"))
    assert list(model.parameters) == ["linear_0.weight", "linear_0.bias", "linear_1.weight", "linear_1.bias", "parameter_0", "shift"]
    assert model.parameters["shift"].shape == () and "linear_1" in model.summary()


def test_dropout_and_softmax_in_a_graph_are_theirs_in_a_chain(dtype):
    x = fb.Input(6)
    graph = fb.Model(x, fb.Softmax()(fb.Dropout(0.5)(fb.Linear(6, 4)(x))), dtype=dtype, seed=0)
    chain = fb.Sequential(fb.Linear(6, 4), fb.Dropout(0.5), fb.Softmax(), dtype=dtype, seed=0)
    data = numbers(9, 6)
    assert graph.predict(data).tobytes() == chain.predict(data).tobytes()
    assert graph.forward(data).tobytes() == chain.forward(data).tobytes()


# --- what is refused --------------------------------------------------------------------------------------------------

X, Y = fb.Input(3), fb.Input(2)


def fit_two(**options):
    """A fit of a model with outputs of 3 and 1 features, with one thing wrong"""
    good = {"y": [np.ones((2, 3)), np.ones((2, 1))], "loss": [fb.MSELoss(), fb.MSELoss()], "optimizer": fb.SGD(0.1)}
    given = good | options
    fb.Model(X, [fb.tanh(X), fb.Linear(3, 1)(X)]).fit(np.ones((2, 3)), given.pop("y"), **given)


REFUSED = {
    "widths": (ValueError, ["3", "2"], lambda: X + Y),
    "layer's width": (ValueError, ["4", "3"], lambda: fb.Linear(4, 1)(X)),
    "array for a node": (TypeError, ["array", "node"], lambda: fb.Linear(3, 1)(np.ones((2, 3)))),
    "array in arithmetic": (TypeError, ["Parameter"], lambda: np.ones(3) * X),
    "string in arithmetic": (TypeError, ["'a'"], lambda: X + "a"),
    "nan in arithmetic": (ValueError, ["nan"], lambda: X * float("nan")),
    "by zero": (ValueError, ["0"], lambda: X / 0),
    "truth value": (TypeError, ["truth"], lambda: bool(X)),
    "iteration": (TypeError, ["iterated"], lambda: list(X)),
    "no features": (ValueError, ["features", "0"], lambda: fb.Input(0)),
    "concat of nothing": (ValueError, ["nodes"], lambda: fb.concat([])),
    "concat of a node": (TypeError, ["sequence"], lambda: fb.concat(X)),
    "parameter shape": (ValueError, ["shape", "(2, 3)"], lambda: fb.Parameter((2, 3))),
    "parameter init": (TypeError, ["init"], lambda: fb.Parameter(3, init="zeros")),
    "missing input": (ValueError, ["missing"], lambda: fb.Model(X, fb.concat([X, Y]))),
    "unused input": (ValueError, ["inputs", "no output"], lambda: fb.Model([X, Y], fb.tanh(X))),
    "input twice": (ValueError, ["twice"], lambda: fb.Model([X, X], fb.tanh(X))),
    "computed input": (ValueError, ["Input"], lambda: fb.Model(fb.tanh(X), fb.tanh(X))),
    "no symbols": (TypeError, ["inputs"], lambda: fb.Model(3, fb.tanh(X))),
    "names twice": (ValueError, ["'a'"], lambda: fb.Model(X, fb.Linear(3, 3, name="a")(fb.Linear(3, 3, name="a")(X)))),
    "name with a dot": (ValueError, ["name"], lambda: fb.Linear(3, 3, name="a.b")),
    "node of another model": (ValueError, ["node of this model"], lambda: fb.Model(X, fb.tanh(X)).predict(np.ones((2, 3)), outputs=Y)),
    "one matrix for two inputs": (ValueError, ["2 matrices"], lambda: fb.Model([X, Y], fb.concat([X, Y])).predict(np.ones((2, 5)))),
    "rows that differ": (ValueError, ["x[1]", "rows"], lambda: fb.Model([X, Y], fb.concat([X, Y])).predict([np.ones((2, 3)), np.ones((3, 2))])),
    "one loss for two outputs": (TypeError, ["loss", "sequence"], lambda: fit_two(loss=fb.MSELoss())),
    "three losses for two outputs": (ValueError, ["loss", "2", "3"], lambda: fit_two(loss=[fb.MSELoss()] * 3)),
    "one target for two outputs": (ValueError, ["y", "2 targets"], lambda: fit_two(y=np.ones((2, 4)))),
    "target of the wrong width": (ValueError, ["y[1]"], lambda: fit_two(y=[np.ones((2, 3)), np.ones((2, 2))])),
    "target of the wrong length": (ValueError, ["y[1]", "rows"], lambda: fit_two(y=[np.ones((2, 3)), np.ones((3, 1))])),
    "weights of the wrong number": (ValueError, ["loss_weights"], lambda: fit_two(loss_weights=[1])),
    "negative weight": (ValueError, ["loss_weights", "-1"], lambda: fit_two(loss_weights=[1, -1])),
    "metrics of two outputs": (ValueError, ["metrics"], lambda: fit_two(metrics=("accuracy",))),
    "weights for one output": (ValueError, ["loss_weights"], lambda: fb.Model(X, fb.tanh(X)).fit(
        np.ones((2, 3)), np.ones((2, 3)), loss=fb.MSELoss(), optimizer=fb.SGD(0.1), loss_weights=[1])),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_graph_is_refused(case):
    kind, words, build = REFUSED[case]
    with pytest.raises(kind) as caught:
        build()
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_an_output_may_stand_twice_be_read_on_be_an_input_or_an_identity():
    rng = np.random.default_rng(0)
    x, a, b = fb.Input(3), fb.Linear(3, 4, name="a"), fb.Linear(4, 2, name="b")
    h = fb.ReLU()(a(x))
    out = b(h)
    model = fb.Model(x, [out, out, h, x, fb.Identity()(h)], dtype="float64", seed=0)
    data = rng.normal(size=(9, 3))
    w, c, v, d = model.parameters.values()
    z = data @ w.T + c
    hidden = np.maximum(z, 0)
    exact = [hidden @ v.T + d] * 2 + [hidden, data, hidden]
    assert all(close(part, whole) for outputs in (model.predict(data), model.forward(data)) for part, whole in zip(outputs, exact, strict=True))
    douts = [rng.normal(size=part.shape) for part in exact]
    dx = model.backward(douts)
    dz = ((douts[0] + douts[1]) @ v + douts[2] + douts[4]) * (z > 0)
    assert close(dx, dz @ w + douts[3]) and close(model.gradients["a.weight"], dz.T @ data)
    assert close(model.gradients["b.weight"], (douts[0] + douts[1]).T @ hidden)
    fitted, looped = model, copy.deepcopy(model)
    loss, optimizer = fb.MSELoss(), fb.SGD(lr=0.1)
    for i in (0, 5):
        outputs = looped.forward(data[i : i + 5])
        looped.backward([loss.value_and_grad(part, target[i : i + 5])[1] for part, target in zip(outputs, douts, strict=True)])
        optimizer.step(looped)
    fitted.fit(data, douts, loss=[fb.MSELoss() for _ in douts], optimizer=fb.SGD(lr=0.1), batch_size=5, shuffle=False)
    assert all(np.array_equal(value, looped.parameters[name]) for name, value in fitted.parameters.items())
