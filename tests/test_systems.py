"""The systems S1 to S23 of the mathematics (docs/by-hand), each held to its closed form or to central differences.

float64 throughout; a system is a function or a class that begins with its name.
"""
import collections
import re
import time
from pathlib import Path

import numpy as np
import pytest

import fastbp as fb
import reference
import tolerance
from networks import DROPOUT, LINEAR, MLP, N, OPTIMIZERS, assert_same_bits, close, draw, loop, near, step

DOCS = Path(__file__).parents[1] / "docs"
SYSTEMS = [f"S{i}" for i in range(1, 24)]


def test_every_system_has_its_test():
    found = {match[1] for name in globals() if (match := re.match(r"(?:test_s|TestS)(\d+)", name))}
    assert found == {name[1:] for name in SYSTEMS}


def test_every_system_has_one_section_in_the_docs_in_order():
    pages = re.findall(r"^by-hand/\S+$", (DOCS / "by-hand.md").read_text(), re.MULTILINE)
    headings = [heading for page in pages for heading in re.findall(r"^## (S\d+)\b", (DOCS / f"{page}.md").read_text(), re.MULTILINE)]
    assert headings == SYSTEMS


# --- 1, chain rule on graphs ----------------------------------------------------------------------------------------

V = np.linspace(0.3, 2.0, 7)


def derivative(expression, at=V):
    """d expression(x) / dx at numbers"""
    x = fb.Input(1)
    return fb.Model(x, expression(x), dtype="float64").jacobian(at[:, None])[:, 0, 0]


def cube(x):
    return x * x * x


@pytest.mark.parametrize("expression, exact, at", [
    (lambda x: fb.exp(fb.square(x)), lambda v: 2 * v * np.exp(v * v), V),
    (lambda x: fb.exp(cube(2 * x + 3)), lambda v: 6 * (2 * v + 3) ** 2 * np.exp((2 * v + 3) ** 3), V - 2),
    (lambda x: fb.sin(fb.square(x)), lambda v: 2 * v * np.cos(v * v), V),
], ids=["e^x²", "e^(2x+3)³", "sin x²"])
def test_s1_scalar_chains(expression, exact, at):
    close(derivative(expression, at), exact(at))


def test_s2_two_paths():
    close(derivative(lambda x: 2 * fb.square(x) - fb.sin(x)), 4 * V - np.cos(V))


def cosh(x):
    return 0.5 * (fb.exp(x) + fb.exp(-x))


def sinh(x):
    return 0.5 * (fb.exp(x) - fb.exp(-x))


@pytest.mark.parametrize("expression, exact", [
    (cosh, np.sinh), (sinh, np.cosh), (lambda x: sinh(x) / cosh(x), lambda v: (1 + np.tanh(v)) * (1 - np.tanh(v))),
], ids=["cosh", "sinh", "tanh"])
def test_s3_hyperbolic_functions_from_their_paths(expression, exact):
    close(derivative(expression), exact(V))


@pytest.mark.parametrize("y", [0.0, 1.0, 0.3])
def test_s4_binary_cross_entropy_is_a_two_path_graph(y):
    p = np.linspace(0.1, 0.9, 9)
    exact = (p - y) / (p * (1 - p))
    close(derivative(lambda p: -(y * fb.log(p) + (1 - y) * fb.log(1 - p)), p), exact)
    close(fb.BCELoss(reduction="sum").value_and_grad(p[:, None], np.full((9, 1), y))[1][:, 0], exact)


def test_s5_paths_add_for_every_output():
    x = fb.Input(1)
    y = [fb.sin(x), fb.square(x), fb.exp(x)]
    outer = [fb.Input(1) for _ in y]

    def outputs(y):
        return [y[0] + 2 * y[1] + 3 * y[2], y[0] * y[1] - y[2]]

    model = fb.Model(x, outputs(y), dtype="float64")
    s, c, e = np.sin(V), np.cos(V), np.exp(V)
    jacobian = model.jacobian(V[:, None])
    close(jacobian[:, :, 0], np.stack([c + 4 * V + 3 * e, c * V * V + s * 2 * V - e], axis=1))
    for actual, exact in zip(model.predict(V[:, None]), [s + 2 * V * V + 3 * e, s * V * V - e], strict=True):
        close(actual[:, 0], exact)
    inner = fb.Model(x, y, dtype="float64")
    close(jacobian, fb.Model(outer, outputs(outer), dtype="float64").jacobian(inner.predict(V[:, None])) @ inner.jacobian(V[:, None]))


def test_s6_jacobians_of_two_variables(rng):
    at = rng.uniform(0.5, 1.5, (9, 2))
    x, y = fb.Input(1), fb.Input(1)
    parts = [at[:, :1], at[:, 1:]]
    first = fb.Model([x, y], fb.concat([2 * x + cube(y), fb.exp(y) - 13 * x]), dtype="float64").jacobian(parts)
    second = fb.Model([x, y], fb.concat([fb.sin(fb.square(x) + y), fb.log(cube(y))]), dtype="float64").jacobian(parts)
    u, v = at.T
    cosine = np.cos(u * u + v)
    close(first, np.array([[2 + 0 * u, 3 * v * v], [-13 + 0 * u, np.exp(v)]]).transpose(2, 0, 1))
    close(second, np.array([[2 * u * cosine, cosine], [0 * u, 3 / v]]).transpose(2, 0, 1))


class TestS7VectorsElementByElement:
    @pytest.mark.parametrize("operation", ["+", "-", "*", "/"])
    def test_jacobians_are_diagonal(self, rng, operation):
        a, b = rng.uniform(0.5, 2, (5, 3)), rng.uniform(0.5, 2, (5, 3))
        v, w = fb.Input(3), fb.Input(3)
        graph = {"+": v + w, "-": v - w, "*": v * w, "/": v / w}[operation]
        by_v, by_w = {"+": (1 + 0 * a, 1 + 0 * a), "-": (1 + 0 * a, -1 + 0 * a), "*": (b, a), "/": (1 / b, -a / b**2)}[operation]
        exact = np.zeros((5, 3, 6))
        for i in range(3):
            exact[:, i, i], exact[:, i, 3 + i] = by_v[:, i], by_w[:, i]
        close(fb.Model([v, w], graph, dtype="float64").jacobian([a, b]), exact)

    def test_scalar_expansion_and_sums(self, rng):
        a, s = rng.normal(size=(5, 3)), rng.normal(size=(5, 1))
        v, x = fb.Input(3), fb.Input(1)
        eye = np.broadcast_to(np.eye(3), (5, 3, 3))
        close(fb.Model([v, x], v * x, dtype="float64").jacobian([a, s]), np.concatenate([eye * s[:, :, None], a[:, :, None]], axis=2))
        close(fb.Model([v, x], v + x, dtype="float64").jacobian([a, s]), np.concatenate([eye, np.ones((5, 3, 1))], axis=2))
        close(fb.Model(v, fb.sum(v), dtype="float64").jacobian(a), np.ones((5, 1, 3)))
        close(fb.Model(v, fb.sum(2 * v), dtype="float64").jacobian(a), np.full((5, 1, 3), 2.0))


# --- 2, single units --------------------------------------------------------------------------------------------------

one_feature_or_several = pytest.mark.parametrize("features", [1, 3])


@one_feature_or_several
class TestS8LinearRegression:
    def test_gradient(self, build, rng, features):
        model = build([("Linear", features, 1)])
        x, y = rng.normal(size=(11, features)), rng.normal(size=11)
        out, value, _, _ = step(model, fb.MSELoss(), x, y)
        error = y - out[:, 0]
        close(value, (error**2).mean())
        close(model.gradients["0.weight"], -2 / 11 * error[None, :] @ x)
        close(model.gradients["0.bias"], [-2 / 11 * error.sum()])

    def test_training_reaches_the_normal_equations(self, build, rng, features):
        model = build([("Linear", features, 1, False)])
        x, y = rng.normal(size=(40, features)), rng.normal(size=(40, 1))
        model.fit(x, y, loss=fb.MSELoss(), optimizer=fb.SGD(lr=0.3), epochs=300, batch_size=40)
        expected = np.linalg.solve(x.T @ x, x.T @ y).T
        np.testing.assert_allclose(model.parameters["0.weight"], expected, rtol=tolerance.CONVERGED)


@one_feature_or_several
@pytest.mark.parametrize("on_logits", [True, False])
def test_s9_logistic_regression(build, rng, features, on_logits):
    model = build([("Linear", features, 1)] + ([] if on_logits else [("Sigmoid",)]))
    x, y = rng.normal(size=(11, features)), rng.integers(0, 2, 11)
    out, _, dout, _ = step(model, fb.BCEWithLogitsLoss() if on_logits else fb.BCELoss(), x, y)
    p = (1 / (1 + np.exp(-out)) if on_logits else out)[:, 0]
    dz = dout[:, 0] if on_logits else dout[:, 0] * p * (1 - p)
    close(dz, (p - y) / 11)
    close(model.gradients["0.weight"], -(y - p)[None, :] @ x / 11)
    close(model.gradients["0.bias"], [-(y - p).sum() / 11])


def test_s10_relu_neuron_sums_over_active_examples(build, rng):
    model = build([("Linear", 3, 1), ("ReLU",)])
    model.load_state_dict({"0.weight": [[1.0, -2.0, 0.5]], "0.bias": [1.0]})
    x = np.vstack([rng.normal(size=(12, 3)), [[1.0, 1.0, 0.0]]])  # the last has z = 0
    y = rng.normal(size=13)
    z = x @ [1.0, -2.0, 0.5] + 1.0
    out, value, _, _ = step(model, fb.MSELoss(scale=0.5), x, y)
    active = z > 0
    error = (out[:, 0] - y)[active]
    assert z[-1] == 0 and 0 < active.sum() < 12
    close(value, ((out[:, 0] - y) ** 2).sum() / 26)
    close(model.gradients["0.weight"], error[None, :] @ x[active] / 13)
    close(model.gradients["0.bias"], [error.sum() / 13])


def test_s11_sigmoid_unit(build):
    model = build([("Linear", 1, 1), ("Sigmoid",)])
    x, y = np.array([[0.7]]), np.array([[0.2]])
    out, _, _, _ = step(model, fb.MSELoss(reduction="sum", scale=0.5), x, y)
    close(model.gradients["0.bias"], ((out - y) * out * (1 - out))[0])
    model.forward(x)
    model.backward(np.ones((1, 1)))
    close(model.gradients["0.bias"], (out * (1 - out))[0])


# --- 3, layers and networks -------------------------------------------------------------------------------------------


class TestS12OneLayerByHand:
    def test_layer(self, build):
        model = build([("Linear", 2, 2), ("ReLU",)])
        model.load_state_dict({"0.weight": [[5, 2], [3, 6]], "0.bias": [6, 6]})
        np.testing.assert_array_equal(model.forward([[10.0, 20.0]]), [[96, 156]])
        dx = model.backward([[0.25, -3.0]])
        np.testing.assert_array_equal(model.gradients["0.weight"], [[2.5, 5.0], [-30.0, -60.0]])
        np.testing.assert_array_equal(model.gradients["0.bias"], [0.25, -3.0])
        np.testing.assert_array_equal(dx, [[0.25 * 5 - 3 * 3, 0.25 * 2 - 3 * 6]])

    def test_shared_bias(self):
        x, linear, bias = fb.Input(2), fb.Linear(2, 2, bias=False, name="layer"), fb.Parameter((), init=6, name="bias")
        model = fb.Model(x, fb.ReLU()(linear(x) + bias), dtype="float64")
        model.load_state_dict({"layer.weight": [[5, 2], [3, 6]], "bias": 6.0})
        assert model.forward([[10, 20]]).tolist() == [[96, 156]]
        model.backward([[1, 10]])
        assert model.gradients["bias"] == 11 and model.gradients["layer.weight"].tolist() == [[10, 20], [100, 200]]


@pytest.mark.parametrize("widths", [(3, 2), (3, 5, 2), (4, 7, 1, 6, 3)])
@pytest.mark.parametrize("rows", [1, 9])
def test_s13_sigmoid_network_of_any_depth(build, rng, widths, rows):
    layers = [layer for pair in zip(widths, widths[1:]) for layer in (("Linear", *pair), ("Sigmoid",))]
    model = build(layers)
    x, y = rng.normal(size=(rows, widths[0])), rng.random((rows, widths[-1]))
    g = [x]
    for i in range(0, len(layers), 2):
        w, b = model.parameters[f"{i}.weight"], model.parameters[f"{i}.bias"]
        g.append(1 / (1 + np.exp(-((w @ g[-1].T).T + b))))
    out, value, dout, dx = step(model, fb.MSELoss(), x, y)
    close(out, g[-1])
    close(value, (((out - y) ** 2).sum(axis=1) / widths[-1]).mean())
    dg = 2 * (g[-1] - y) / y.size
    close(dout, dg)
    for i in reversed(range(0, len(layers), 2)):
        delta = dg * g[i // 2 + 1] * (1 - g[i // 2 + 1])
        close(model.gradients[f"{i}.bias"], delta.sum(axis=0))
        close(model.gradients[f"{i}.weight"], delta.T @ g[i // 2])
        dg = delta @ model.parameters[f"{i}.weight"]
    close(dx, dg)


class TestS14AbsorbedBias:
    @pytest.mark.parametrize("widths", [(3, 2), (3, 5, 2), (4, 7, 1, 6, 3)])
    def test_gradients_are_those_with_a_bias_beside(self, build, rng, widths):
        plain = build([layer for pair in zip(widths, widths[1:]) for layer in (("Linear", *pair), ("Sigmoid",))])
        given, one = fb.Input(widths[0]), fb.Input(1)
        node = given
        for i, (inputs, outputs) in enumerate(zip(widths, widths[1:])):
            node = fb.sigmoid(fb.Linear(inputs + 1, outputs, bias=False, name=f"theta{2 * i}")(fb.concat([node, one])))
        absorbed = fb.Model([given, one], node, dtype="float64")
        layers = range(0, 2 * len(widths) - 2, 2)
        absorbed.load_state_dict({f"theta{i}.weight": np.column_stack([plain.parameters[f"{i}.weight"], plain.parameters[f"{i}.bias"]]) for i in layers})
        x, y = rng.normal(size=(9, widths[0])), rng.random((9, widths[-1]))
        loss = fb.MSELoss(reduction="sum", scale=0.5)
        out, value, _, dx = step(plain, loss, x, y)
        _, value_absorbed, _, dtheta = step(absorbed, loss, [x, np.ones((9, 1))], y)
        close(value, ((y - out) ** 2).sum() / 2)
        close(value_absorbed, value)
        close(dtheta[0], dx)
        for i in layers:
            close(absorbed.gradients[f"theta{i}.weight"], np.column_stack([plain.gradients[f"{i}.weight"], plain.gradients[f"{i}.bias"]]))

    def test_halved_sum_is_the_mean_times_half_its_count(self, build, rng):
        model = build([("Linear", 3, 4), ("Sigmoid",), ("Linear", 4, 2), ("Sigmoid",)])
        x, y = rng.normal(size=(9, 3)), rng.random((9, 2))
        step(model, fb.MSELoss(), x, y)
        mean = model.flat_gradients.copy()
        step(model, fb.MSELoss(reduction="sum", scale=0.5), x, y)
        close(model.flat_gradients, mean * y.size / 2)


def test_s15_two_layers_one_output(build, rng):
    model = build([("Linear", 3, 6), ("ReLU",), ("Linear", 6, 1)])
    w1, b1, w2, b2 = model.parameters.values()
    x, y = rng.normal(size=(1, 3)), rng.normal(size=(1, 1))
    out, _, _, dx = step(model, fb.MSELoss(scale=0.5), x, y)
    z = w1 @ x[0] + b1
    a = np.maximum(z, 0)
    error = out[0] - y[0]
    dz = w2.T @ error * (z > 0)
    assert 0 < (z > 0).sum() < 6
    close(out[0], w2 @ a + b2)
    close(model.gradients["2.weight"], np.outer(error, a))
    close(model.gradients["2.bias"], error)
    close(model.gradients["0.weight"], np.outer(dz, x[0]))
    close(model.gradients["0.bias"], dz)
    close(dx[0], w1.T @ dz)


def test_s16_two_layers_softmax_cross_entropy(build, rng):
    model = build([("Linear", 3, 6), ("ReLU",), ("Linear", 6, 4)])
    w1, b1, w2, b2 = model.parameters.values()
    x, y = rng.normal(size=(8, 3)), rng.integers(0, 4, 8)
    out, value, dout, dx = step(model, fb.CrossEntropyLoss(), x, y)
    p = np.exp(out) / np.exp(out).sum(axis=1, keepdims=True)
    ds = (p - np.eye(4)[y]) / 8
    z = x @ w1.T + b1
    dz = ds @ w2 * (z > 0)
    close(out, np.maximum(z, 0) @ w2.T + b2)
    close(value, -np.log(p[np.arange(8), y]).mean())
    close(dout, ds)
    close(model.gradients["2.weight"], ds.T @ np.maximum(z, 0))
    close(model.gradients["2.bias"], ds.sum(axis=0))
    close(model.gradients["0.weight"], dz.T @ x)
    close(model.gradients["0.bias"], dz.sum(axis=0))
    close(dx, dz @ w1)


def test_s17_examples_as_columns_or_rows(build, rng):
    model = build([("Linear", 3, 6), ("ReLU",), ("Linear", 6, 4)])
    w1, b1, w2, b2 = model.parameters.values()
    x, y = rng.normal(size=(8, 3)), rng.integers(0, 4, 8)
    _, _, _, dx = step(model, fb.CrossEntropyLoss(), x, y)
    one = np.ones((8, 1))

    z = w1 @ x.T + b1[:, None] @ one.T  # examples as columns, weights (O, I)
    s = w2 @ np.maximum(z, 0) + b2[:, None] @ one.T
    ds = (np.exp(s) / np.exp(s).sum(axis=0) - np.eye(4)[:, y]) / 8
    dz = w2.T @ ds * (z > 0)
    columns = dz @ x, dz @ one, ds @ np.maximum(z, 0).T, ds @ one, (w1.T @ dz).T

    v1, v2 = w1.T, w2.T  # examples as rows, weights (I, O)
    z = x @ v1 + one @ b1[None, :]
    s = np.maximum(z, 0) @ v2 + one @ b2[None, :]
    ds = (np.exp(s) / np.exp(s).sum(axis=1, keepdims=True) - np.eye(4)[y]) / 8
    dz = ds @ v2.T * (z > 0)
    rows = (x.T @ dz).T, (one.T @ dz).T, (np.maximum(z, 0).T @ ds).T, (one.T @ ds).T, dz @ v1.T

    for mine, column, row in zip([*model.gradients.values(), dx], columns, rows, strict=True):
        close(column, row)
        close(mine, column.reshape(mine.shape))


@pytest.mark.parametrize("activation", [(name,) for name in reference.ACTIVATIONS], ids=str)
def test_s18_input_gradient_equals_central_differences(build, rng, activation):
    model = build([("Linear", 5, 7), activation, ("Linear", 7, 7), activation, ("Linear", 7, 3)], seed=2)
    x, y = rng.normal(size=(5, 5)), np.array([2, 0, 1, 1, 2])
    loss = fb.CrossEntropyLoss()
    dx = step(model, loss, x, y)[3]
    near(dx, reference.central_difference(lambda: loss(model.predict(x), y), x))


@pytest.mark.parametrize("layer", [0, 2, 4])
def test_s19_error_of_a_node_is_the_change_of_the_cost(build, rng, layer):
    """Adding Δ to z_j of one example is adding it to the bias"""
    model = build([("Linear", 4, 5), ("Tanh",), ("Linear", 5, 6), ("Sigmoid",), ("Linear", 6, 3)])
    x, y = rng.normal(size=(1, 4)), np.array([1])
    step(model, fb.CrossEntropyLoss(), x, y)
    delta = model.gradients[f"{layer}.bias"].copy()
    cost = fb.CrossEntropyLoss()(model.predict(x), y)
    for j in range(len(delta)):
        for change in (1e-2, -1e-3, 1e-4):
            model.parameters[f"{layer}.bias"][j] += change
            changed = fb.CrossEntropyLoss()(model.predict(x), y)
            model.parameters[f"{layer}.bias"][j] -= change
            assert abs(changed - cost - delta[j] * change) < tolerance.SECOND_ORDER * change**2


# --- 4, training --------------------------------------------------------------------------------------------------------


class TestS20GradientDescent:
    @pytest.mark.parametrize("loss", ["MSELoss", "BCEWithLogitsLoss", "CrossEntropyLoss", "HuberLoss"])
    def test_on_a_convex_problem_the_loss_falls_with_every_step(self, build, loss):
        x, y, _ = draw(loss)
        model = build([("Linear", 5, 3)])
        losses = model.fit(x, y, loss=getattr(fb, loss)(), optimizer=fb.SGD(0.1), epochs=60, batch_size=N).history["loss"]
        assert len(losses) == 60
        assert all(later < earlier for earlier, later in zip(losses, losses[1:]))

    def test_a_step_of_the_unrolled_parameters_is_within_one_ulp(self, build, dtype):
        """η is a power of two, so that it is the same number in either type"""
        x, y, _ = draw("MSELoss")
        model, optimizer = build(MLP, dtype=dtype), fb.SGD(lr=0.125)
        for _ in range(5):
            step(model, fb.MSELoss(), x, y)
            exact = model.flat_parameters.astype(np.longdouble) - np.longdouble(0.125) * model.flat_gradients
            optimizer.step(model)
            assert tolerance.ulp_error(model.flat_parameters, exact, dtype).max() <= tolerance.elementwise_ulp("sgd")


def test_s21_stochastic_gradient_descent_is_batch_size_one(build):
    x, y, _ = draw("MSELoss")
    fitted, looped = build(MLP), build(MLP)
    fitted.fit(x, y, loss=fb.MSELoss(), optimizer=fb.SGD(0.05), batch_size=1, shuffle=False)
    optimizer = fb.SGD(0.05)
    for i in range(N):
        step(looped, fb.MSELoss(), x[i : i + 1], y[i : i + 1])
        optimizer.step(looped)
    assert_same_bits(fitted, looped)


class TestS22Minibatches:
    def test_a_million_examples_in_batches_of_120(self, build):
        x = np.linspace(-1, 1, 1_000_000, dtype="float32").reshape(-1, 1)
        assert [len(xb) for xb, yb in fb.minibatches(x, x, batch_size=120, shuffle=False)] == [120] * 8333 + [40]
        optimizer = fb.SGD(0.01)
        build([("Linear", 1, 1)], dtype="float32").fit(x, x, loss=fb.MSELoss(), optimizer=optimizer, batch_size=120)
        assert optimizer.steps == 8334

    def test_the_last_batch_is_averaged_over_its_own_rows(self, build):
        x, y, _ = draw("MSELoss", n=100)
        loss, model = fb.MSELoss(reduction="batchmean"), build([("Linear", 5, 3)])
        *_, (xb, yb) = fb.minibatches(x, y, batch_size=60, shuffle=False)
        assert len(xb) == 40
        _, value, dout, _ = step(model, loss, xb, yb)
        expected = reference.mse(model.predict(x[60:]), y[60:], reduction="batchmean")
        close(value, expected[0])
        close(dout, expected[1])

        fitted, whole = build([("Linear", 5, 3)]), build([("Linear", 5, 3)])
        fitted.fit(x, y, loss=loss, optimizer=fb.SGD(0.05), batch_size=60, shuffle=False)
        for part in (slice(60), slice(60, 100)):
            whole.fit(x[part], y[part], loss=loss, optimizer=fb.SGD(0.05), batch_size=60, shuffle=False)
        assert_same_bits(fitted, whole)


Divergence = collections.namedtuple("Divergence", "model message finite step")


def diverge(build, dtype, make_optimizer, layers=MLP, size=1.0, epochs=200):
    """fit until FloatingPointError: model, message, the loop's last finite parameters and the step after them"""
    x, y, _ = draw("MSELoss")
    fitted, looped = build(layers, dtype=dtype), build(layers, dtype=dtype)
    options = {"epochs": epochs, "batch_size": 8, "seed": 5}
    with pytest.raises(FloatingPointError) as caught:
        fitted.fit(x, size * y, loss=fb.MSELoss(), optimizer=make_optimizer(), **options)
    finite = looped.flat_parameters.copy()
    for taken, (value, _) in enumerate(loop(looped, x, size * y, fb.MSELoss(), make_optimizer(), **options)):
        if not (np.isfinite(value) and np.isfinite(looped.flat_parameters).all()):
            return Divergence(fitted, str(caught.value), finite, taken)
        finite = looped.flat_parameters.copy()
    raise AssertionError("the loop did not diverge")


class TestS23LearningRates:
    def test_a_smaller_rate_crawls(self, build):
        """Between the rate that diverges and one that crawls there is one that trains"""
        x, y, _ = draw("MSELoss")
        last = {lr: build(LINEAR).fit(x, y, loss=fb.MSELoss(), optimizer=fb.SGD(lr), epochs=50, batch_size=N).history["loss"][-1] for lr in (1e-4, 0.1)}
        start = fb.MSELoss()(build(LINEAR).predict(x), y)
        assert last[0.1] < 0.9 * start < last[1e-4] < start

    @pytest.mark.parametrize("options", [{"lr": 30.0}, {"lr": 10.0, "momentum": 0.9}, {"lr": 1e30}], ids=str)
    def test_divergence_keeps_the_last_finite_parameters(self, build, dtype, options):
        result = diverge(build, dtype, lambda: fb.SGD(**options), LINEAR)
        np.testing.assert_array_equal(result.model.flat_parameters, result.finite)

    @pytest.mark.parametrize("steps", [0, 5, 6, 100])
    @pytest.mark.parametrize("optimizer", [optimizer for optimizer in OPTIMIZERS if optimizer[0] == "SGD"], ids=str)
    @pytest.mark.parametrize("layers", [MLP, DROPOUT], ids=["plain", "dropout"])
    def test_overflowing_update_is_undone(self, build, dtype, layers, optimizer, steps):
        """The loss is finite, the parameters after the update are not"""
        options = {**optimizer[1], "lr": lambda step: 1e-6 if step < steps else float(np.finfo(dtype).max)}
        result = diverge(build, dtype, lambda: fb.SGD(**options), layers, size=1000.0)
        assert steps <= result.step <= steps + 1
        np.testing.assert_array_equal(result.model.flat_parameters, result.finite)

    def test_overflow_after_a_long_run_is_undone(self, build, dtype):
        """Far beyond one native call of 25 ms"""

        def optimizer():
            return fb.SGD(lr=lambda step: 1e-6 if step < 30_000 else float(np.finfo(dtype).max), momentum=0.9)

        result = diverge(build, dtype, optimizer, size=1000.0, epochs=10_000)
        assert result.step >= 30_000
        np.testing.assert_array_equal(result.model.flat_parameters, result.finite)

    def test_overflow_seconds_after_the_start_is_undone(self, build):
        """A schedule that waits: fit goes back to a snapshot that is not its first"""
        waits = []

        def schedule(step):
            if step in (100, 200, 300) and not waits.count(step):
                waits.append(step)
                time.sleep(0.5)
            return 1e-6 if step < 310 else float(np.finfo("float64").max)

        result = diverge(build, "float64", lambda: fb.SGD(lr=schedule, momentum=0.9), DROPOUT, size=1000.0)
        np.testing.assert_array_equal(result.model.flat_parameters, result.finite)

    def test_the_error_names_epoch_batch_and_loss(self, build, dtype):
        """Counted from 1: epochs have six batches"""
        result = diverge(build, dtype, lambda: fb.SGD(lr=30.0), LINEAR)
        epoch, batch = divmod(result.step, 6)
        assert re.search(rf"epoch {epoch + 1}\b", result.message)
        assert re.search(rf"batch {batch + 1}\b", result.message)
        assert "loss" in result.message

    def test_fit_works_again_afterwards(self, build):
        model = diverge(build, "float64", lambda: fb.SGD(lr=30.0), LINEAR).model
        model.load_state_dict({name: p / np.abs(p).max() for name, p in model.parameters.items()})
        x, y, _ = draw("MSELoss")
        losses = model.fit(x, y, loss=fb.MSELoss(), optimizer=fb.SGD(0.01), epochs=3, batch_size=8, seed=1).history["loss"]
        assert losses[2] < losses[0]
