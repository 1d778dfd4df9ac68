"""Model.trace and Model.draw: the numbers of backpropagation by hand, node by node."""
import numpy as np
import pytest
from test_graph import close, draw_data, draw_graph, every_graph
from tolerance import CLOSED_FORM, CONVERGED, GRADIENT

import fastbp as fb


def two_layers():
    """S15: J = ½(y − o)², ReLU"""
    model = fb.Sequential(fb.Linear(3, 4), fb.ReLU(), fb.Linear(4, 1), dtype="float64", seed=2)
    rng = np.random.default_rng(0)
    return model, rng.normal(size=(5, 3)), rng.normal(size=(5, 1)), fb.MSELoss(reduction="sum", scale=0.5)


def test_every_delta_is_that_of_the_derivation():
    model, x, y, loss = two_layers()
    w1, b1, w2, b2 = model.parameters.values()
    z = x @ w1.T + b1
    a = np.maximum(z, 0)
    o = a @ w2.T + b2
    trace = model.trace(x, y, loss)
    do = o - y
    da = do @ w2
    dz = da * (z > 0)
    assert [row.title for row in trace] == ["Input", "Linear 3 → 4", "ReLU", "Linear 4 → 1"] and [row.name for row in trace] == ["", "0", "", "2"]
    for row, value, delta in zip(trace, (x, z, a, o), (dz @ w1, dz, da, do), strict=True):
        assert close(row.value, value) and close(row.delta, delta)
    for name, gradient in {"0.weight": dz.T @ x, "0.bias": dz.sum(axis=0), "2.weight": do.T @ a, "2.bias": do.sum(axis=0)}.items():
        assert close(trace.gradients[name], gradient)
    assert abs(trace.loss - 0.5 * np.sum(do**2)) <= CLOSED_FORM * trace.loss


@every_graph
def test_trace_of_a_random_graph_is_predict_and_backward(seed):
    model, _, widths = draw_graph(seed)
    x, y = draw_data(widths, 6)
    loss = fb.MSELoss()
    before = model.state_dict()
    trace = model.trace(x, y, loss)
    values = model.predict(x, outputs=list(model.symbols))
    assert all(close(trace[symbol].value, value) for symbol, value in zip(model.symbols, values, strict=True))
    dx = model.backward(loss.value_and_grad(model.forward(x), y)[1])
    assert all(close(row.delta, part) for row, part in zip(trace, dx, strict=False))
    assert all(close(trace.gradients[name], gradient) for name, gradient in model.gradients.items())
    assert all(np.array_equal(before[name], value) for name, value in model.state_dict().items())


def test_s19_adding_to_a_node_changes_the_loss_by_its_delta():
    model, x, y, loss = two_layers()
    trace = model.trace(x[:1], y[:1], loss)
    step = 1e-6
    for name, row in (("0", trace["0"]), ("2", trace["2"])):
        bias = model.parameters[f"{name}.bias"]   # a node's bias adds to its z
        for j in range(len(bias)):
            values = []
            for delta in (step, -step):
                bias[j] += delta
                values.append(loss(model.predict(x[:1]), y[:1]))
                bias[j] -= delta
            assert abs((values[0] - values[1]) / (2 * step) - row.delta[0, j]) <= GRADIENT


def test_dropout_and_batch_statistics_only_when_training():
    model = fb.Sequential(fb.Linear(3, 8), fb.BatchNorm1d(8), fb.Dropout(0.5), fb.Linear(8, 2), dtype="float64", seed=0)
    x, y = np.random.default_rng(0).normal(size=(9, 3)), np.arange(9) % 2
    before, loss = model.state_dict(), fb.CrossEntropyLoss()
    still, training = model.trace(x, y, loss), model.trace(x, y, loss, training=True)
    assert np.array_equal(still[3].value, still[2].value) and np.any(training[3].value == 0)
    assert np.all(np.abs(training["1"].value.mean(axis=0)) <= CONVERGED) and not np.allclose(still["1"].value.mean(axis=0), 0)
    assert all(np.array_equal(before[name], value) for name, value in model.state_dict().items())


def test_several_outputs_have_a_loss_each():
    x = fb.Input(3)
    h = fb.Tanh()(fb.Linear(3, 4)(x))
    model = fb.Model([x], [fb.Linear(4, 2)(h), h], dtype="float64", seed=0)
    data, labels, y = np.ones((2, 3)), np.array([0, 1]), np.zeros((2, 4))
    trace = model.trace([data], [labels, y], [fb.CrossEntropyLoss(), fb.MSELoss()], loss_weights=[1, 3])
    heads, hidden = model.predict([data])
    value, gradient = fb.CrossEntropyLoss().value_and_grad(heads, labels)
    squares, slope = fb.MSELoss().value_and_grad(hidden, y)
    assert abs(trace.loss - value - 3 * squares) <= CLOSED_FORM
    assert close(trace[h].delta, gradient @ model.parameters["linear_1.weight"] + 3 * slope)


def test_the_table_shows_few_numbers_and_many_by_their_range():
    model, x, y, loss = two_layers()
    text = str(model.trace(x[:1], y[:1], loss))
    assert text.splitlines()[0].startswith("loss ") and f"{x[0, 0]:.5g} {x[0, 1]:.5g}" in text
    many = str(model.trace(np.tile(x, (9, 1)), np.tile(y, (9, 1)), loss))
    assert f"{x.min():.4g} … {x.max():.4g}" in many


@pytest.mark.parametrize("ask, error, words", [
    (lambda m, x, y, loss: m.trace(x, y, fb.MSELoss), TypeError, "loss"),
    (lambda m, x, y, loss: m.trace(x[:, :2], y, loss), ValueError, "x must have shape"),
    (lambda m, x, y, loss: m.trace(x, y[:3], loss), ValueError, "y must have as many rows"),
    (lambda m, x, y, loss: m.trace(x, y, loss, training=1), TypeError, "training"),
    (lambda m, x, y, loss: m.trace(x, y, loss)["7"], KeyError, "the names are 0, 2"),
    (lambda m, x, y, loss: m.trace(x, y, loss)[fb.Input(3)], KeyError, "not a node"),
])
def test_errors(ask, error, words):
    with pytest.raises(error, match=words):
        ask(*two_layers())


class TestDraw:
    """what a picture says is looked for in the text of an SVG"""

    @pytest.fixture(autouse=True)
    def libraries(self):
        pytest.importorskip("matplotlib").use("Agg")
        pytest.importorskip("igraph")

    def test_shapes_names_and_values(self, tmp_path):
        x, layer, bias = fb.Input(2), fb.Linear(2, 2, bias=False, name="layer"), fb.Parameter((), init=6, name="shared")
        model = fb.Model(x, fb.ReLU()(layer(x) + bias) / 2, dtype="float64")
        model.load_state_dict({"layer.weight": [[5, 2], [3, 6]], "shared": 6.0})
        model.draw(tmp_path / "net.svg")
        text = (tmp_path / "net.svg").read_text()
        assert all(f">{words}<" in text for words in ("Input", "Linear 2 → 2", "layer   (B, 2)", "shared   (B, 1)", "+", "ReLU", "0.5 x"))
        assert "value" not in text
        model.draw(tmp_path / "net.svg", model.trace([[10, 20]], [[0, 0]], fb.MSELoss()))
        assert "value [96 156]" in (tmp_path / "net.svg").read_text()

    @pytest.mark.parametrize("seed", range(6))
    def test_boxes_of_a_random_graph_do_not_overlap(self, tmp_path, seed, monkeypatch):
        from matplotlib import patches

        boxes, make = [], patches.FancyBboxPatch.__init__
        monkeypatch.setattr(patches.FancyBboxPatch, "__init__", lambda self, xy, w, h, **rest: (boxes.append((*xy, w, h)), make(self, xy, w, h, **rest))[1])
        model, _, _ = draw_graph(seed)
        model.draw(tmp_path / "net.png")
        assert len(boxes) == len(model.symbols) and (tmp_path / "net.png").stat().st_size > 1000
        for i, (x, y, w, h) in enumerate(boxes):
            assert all(x + w <= u or u + v <= x or y + h <= t or t + s <= y for u, t, v, s in boxes[:i])

    def test_errors(self, tmp_path):
        model, x, y, loss = two_layers()
        with pytest.raises(ValueError, match="trace must be one of this model"):
            model.draw(tmp_path / "net.svg", fb.Sequential(fb.Linear(3, 1)).trace(x, y, loss))
        with pytest.raises(TypeError, match="trace"):
            model.draw(tmp_path / "net.svg", trace=3)
        with pytest.raises(ValueError, match="bmpx"):
            model.draw(tmp_path / "net.bmpx")
