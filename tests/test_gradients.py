"""Gradients: central differences for every layer and loss, and the closed forms of MATH.md, S8 to S19."""
import numpy as np
import pytest

import fastbp as fb
import reference
import tolerance

ACTIVATIONS = [(name,) for name in reference.ACTIVATIONS] + [("LeakyReLU", 0.3)]
# (name, options, target of five rows and three outputs)
LOSSES = [
    ("MSELoss", {}, "real"),
    ("MSELoss", {"reduction": "batchmean", "scale": 0.5}, "real"),
    ("MSELoss", {"reduction": "sum", "scale": 0.3}, "real"),
    ("L1Loss", {}, "real"),
    ("HuberLoss", {}, "real"),
    ("HuberLoss", {"delta": 0.4}, "real"),
    ("BCELoss", {}, "probability"),
    ("BCEWithLogitsLoss", {}, "probability"),
    ("CrossEntropyLoss", {}, "label"),
    ("CrossEntropyLoss", {}, "distribution"),
    ("CrossEntropyLoss", {"label_smoothing": 0.1}, "label"),
]
TARGETS = {
    "real": np.random.default_rng(1).normal(size=(5, 3)),
    "probability": np.random.default_rng(2).random((5, 3)),
    "label": np.array([2, 0, 1, 1, 2]),
    "distribution": np.random.default_rng(3).dirichlet([1, 2, 3], 5),
}
WEIGHTS = np.array([0.5, 2.0, 0.25, 1.0, 3.0])


def close(actual, expected):
    """Equal up to rounding: a closed form"""
    np.testing.assert_allclose(actual, expected, rtol=tolerance.CLOSED_FORM, atol=tolerance.CLOSED_FORM, strict=False)


def near(actual, expected):
    """Equal up to the error of central differences"""
    np.testing.assert_allclose(actual, expected, rtol=tolerance.GRADIENT, atol=tolerance.GRADIENT_ABSOLUTE)


def step(model, loss, x, y, sample_weight=None):
    """Forward, loss, backward: prediction, value, gradient of the prediction, gradient of the input"""
    out = model.forward(x)
    value, dout = loss.value_and_grad(out, y, sample_weight)
    return out, value, dout, model.backward(dout)


def pair(build, layers):
    """The same network twice: in fastbp and in the reference"""
    model = build(layers)
    return model, reference.Network(layers, model.parameters)


def assert_gradient(model, loss, x, y, sample_weight=None):
    """Every parameter's and every input's gradient equals central differences of the loss of the prediction"""
    dx = step(model, loss, x, y, sample_weight)[3]

    def cost():
        return loss.value_and_grad(model.predict(x), y, sample_weight)[0]

    for name, p in model.parameters.items():
        near(model.gradients[name], reference.central_difference(cost, p))
    near(dx, reference.central_difference(cost, x))


# --- central differences ------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("name, options, target", LOSSES)
def test_gradient_with_hidden_activation_equals_central_differences(build, rng, activation, name, options, target):
    last = [("Sigmoid",)] if name == "BCELoss" else []
    model = build([("Linear", 4, 6), activation, ("Linear", 6, 3), *last], seed=1)
    assert_gradient(model, getattr(fb, name)(**options), rng.normal(size=(5, 4)), TARGETS[target])


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("name, options, target", [loss for loss in LOSSES if loss[2] == "real"])
def test_gradient_with_final_activation_equals_central_differences(build, rng, activation, name, options, target):
    model = build([("Linear", 4, 3, False), activation], seed=1)
    assert_gradient(model, getattr(fb, name)(**options), rng.normal(size=(5, 4)), TARGETS[target])


@pytest.mark.parametrize("name, options, target", LOSSES)
def test_gradient_with_sample_weights_equals_central_differences(build, rng, name, options, target):
    last = [("Sigmoid",)] if name == "BCELoss" else []
    model = build([("Linear", 4, 3), *last], seed=1)
    assert_gradient(model, getattr(fb, name)(**options), rng.normal(size=(5, 4)), TARGETS[target], WEIGHTS)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("name, options, target", LOSSES)
def test_check_gradients_accepts_every_layer_and_loss(build, rng, dtype, activation, name, options, target):
    last = [("Sigmoid",)] if name == "BCELoss" else []
    model = build([("Linear", 4, 6), activation, ("Linear", 6, 3), *last], dtype=dtype, seed=1)
    report = fb.check_gradients(model, getattr(fb, name)(**options), rng.normal(size=(5, 4)), TARGETS[target])
    assert report.ok
    assert report.max_error <= tolerance.GRADIENT


def test_check_gradients_reports_a_wrong_gradient(build, rng):
    class Wrong:
        def value_and_grad(self, prediction, target, sample_weight=None):
            value, gradient = fb.MSELoss().value_and_grad(prediction, target, sample_weight)
            return value, gradient * 1.001

    report = fb.check_gradients(build([("Linear", 4, 3)]), Wrong(), rng.normal(size=(5, 4)), TARGETS["real"])
    assert not report.ok
    assert report.max_error > tolerance.GRADIENT


def test_check_gradients_prints_a_row_per_parameter(build, rng):
    model = build([("Linear", 4, 3), ("Tanh",), ("Linear", 3, 3)])
    text = str(fb.check_gradients(model, fb.MSELoss(), rng.normal(size=(5, 4)), TARGETS["real"]))
    assert all(name in text for name in model.parameters)


def test_check_gradients_leaves_the_model_as_it_was(build, rng):
    model = build([("Linear", 4, 3), ("Tanh",), ("Linear", 3, 3)])
    before = model.flat_parameters.copy(), model.flat_gradients.copy()
    fb.check_gradients(model, fb.MSELoss(), rng.normal(size=(5, 4)), TARGETS["real"])
    np.testing.assert_array_equal(model.flat_parameters, before[0])
    np.testing.assert_array_equal(model.flat_gradients, before[1])


@pytest.mark.parametrize("depth", range(6))
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_gradient_of_any_depth_equals_reference(build, rng, depth, activation):
    layers = [("Linear", 3, 5)]
    for _ in range(depth):
        layers += [activation, ("Linear", 5, 5)]
    model, net = pair(build, layers)
    x, y = rng.normal(size=(7, 3)), rng.normal(size=(7, 5))
    _, value, _, dx = step(model, fb.MSELoss(), x, y)
    expected, dout = reference.mse(net.forward(x), y)
    close(dx, net.backward(dout))
    close(value, expected)
    for name in net.gradients:
        close(model.gradients[name], net.gradients[name])


@pytest.mark.parametrize("name, options, target", LOSSES)
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
def test_loss_equals_reference(rng, name, options, target, weights):
    prediction = rng.normal(size=(5, 3))
    prediction = reference.sigmoid_forward(prediction) if name == "BCELoss" else prediction
    value, gradient = getattr(fb, name)(**options).value_and_grad(prediction, TARGETS[target], weights)
    expected = reference.LOSSES[name](prediction, TARGETS[target], weights, **options)
    close(value, expected[0])
    close(gradient, expected[1])


@pytest.mark.parametrize("target", [0.0, 1.0, 0.25])
def test_bce_clamps_as_pytorch_does(target):
    p = np.array([[0.0], [1e-300], [1e-40], [1e-13], [1e-6], [0.5], [1 - 1e-6], [1 - 1e-13], [1.0]])
    y = np.full_like(p, target)
    value, gradient = fb.BCELoss().value_and_grad(p, y)
    expected = reference.bce(p, y)
    close(value, expected[0])
    np.testing.assert_allclose(gradient, expected[1], rtol=tolerance.CLOSED_FORM)


@pytest.mark.parametrize("name, target", [("BCEWithLogitsLoss", "probability"), ("CrossEntropyLoss", "label")])
@pytest.mark.parametrize("size", [30.0, 1e3, 1e4])
def test_logit_losses_do_not_overflow(rng, name, target, size):
    prediction = size * rng.choice([-1.0, 0.5, 1.0], (5, 3))
    value, gradient = getattr(fb, name)().value_and_grad(prediction, TARGETS[target])
    expected = reference.LOSSES[name](prediction, TARGETS[target])
    np.testing.assert_allclose(value, expected[0], rtol=tolerance.CLOSED_FORM)
    close(gradient, expected[1])


def test_backward_overwrites_gradients(build, rng):
    model = build([("Linear", 4, 3)])
    x = rng.normal(size=(5, 4))
    first = step(model, fb.MSELoss(), x, TARGETS["real"])[3], model.flat_gradients.copy()
    second = step(model, fb.MSELoss(), x, TARGETS["real"])[3], model.flat_gradients
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


@pytest.mark.parametrize("activation", ["ReLU", "LeakyReLU", "ELU"])
def test_derivative_at_zero_is_that_of_pytorch(build, activation):
    model = build([("Linear", 1, 1), (activation,)])
    model.load_state_dict({"0.weight": [[1.0]], "0.bias": [0.0]})
    model.forward(np.array([[0.0], [-0.0]]))
    expected = {"ReLU": 0.0, "LeakyReLU": 0.01, "ELU": 1.0}[activation]
    np.testing.assert_array_equal(model.backward(np.ones((2, 1))), np.full((2, 1), expected))


def test_dropout_backward_uses_the_mask_of_its_forward(build, rng):
    model = build([("Linear", 50, 50, False), ("Dropout", 0.3)])
    model.load_state_dict({"0.weight": np.eye(50)})
    x = rng.normal(size=(40, 50))
    mask = model.forward(x) != 0
    dy = rng.normal(size=x.shape)
    assert abs(mask.mean() - 0.7) < tolerance.SIGMAS * np.sqrt(0.3 * 0.7 / mask.size)
    close(model.backward(dy), reference.dropout_backward(dy, mask, 0.3))


def test_dropout_forward_equals_reference_and_draws_anew(build, rng):
    model = build([("Linear", 50, 50, False), ("Dropout", 0.3)])
    model.load_state_dict({"0.weight": np.eye(50)})
    x = rng.normal(size=(40, 50))
    first, second = model.forward(x), model.forward(x)
    close(first, reference.dropout_forward(x, first != 0, 0.3))
    assert ((first != 0) != (second != 0)).any()
    close(model.predict(x), x)
    close(model.forward(x, training=False), x)


# --- MATH.md 2, single units --------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [1, 3])
def test_s8_linear_regression_gradient(build, rng, features):
    model = build([("Linear", features, 1)])
    x, y = rng.normal(size=(11, features)), rng.normal(size=11)
    out, value, _, _ = step(model, fb.MSELoss(), x, y)
    error = y - out[:, 0]
    close(value, (error**2).mean())
    close(model.gradients["0.weight"], -2 / 11 * error[None, :] @ x)
    close(model.gradients["0.bias"], [-2 / 11 * error.sum()])


@pytest.mark.parametrize("features", [1, 3])
def test_s8_training_reaches_the_normal_equations(build, rng, features):
    model = build([("Linear", features, 1, False)])
    x, y = rng.normal(size=(40, features)), rng.normal(size=(40, 1))
    model.fit(x, y, loss=fb.MSELoss(), optimizer=fb.SGD(lr=0.3), epochs=300, batch_size=40)
    expected = np.linalg.solve(x.T @ x, x.T @ y).T
    np.testing.assert_allclose(model.parameters["0.weight"], expected, rtol=tolerance.CONVERGED)


@pytest.mark.parametrize("features", [1, 3])
@pytest.mark.parametrize("on_logits", [True, False])
def test_s9_logistic_regression_gradient(build, rng, features, on_logits):
    model = build([("Linear", features, 1)] + ([] if on_logits else [("Sigmoid",)]))
    x, y = rng.normal(size=(11, features)), rng.integers(0, 2, 11)
    out, _, dout, _ = step(model, fb.BCEWithLogitsLoss() if on_logits else fb.BCELoss(), x, y)
    p = (1 / (1 + np.exp(-out)) if on_logits else out)[:, 0]
    dz = dout[:, 0] if on_logits else dout[:, 0] * p * (1 - p)
    close(dz, (p - y) / 11)
    close(model.gradients["0.weight"], -(y - p)[None, :] @ x / 11)
    close(model.gradients["0.bias"], [-(y - p).sum() / 11])


def test_s10_relu_neuron_gradient_sums_over_active_examples(build, rng):
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


# --- MATH.md 3, layers and networks -------------------------------------------------------------------------


def test_s12_one_layer_by_hand(build):
    model = build([("Linear", 2, 2), ("ReLU",)])
    model.load_state_dict({"0.weight": [[5, 2], [3, 6]], "0.bias": [6, 6]})
    np.testing.assert_array_equal(model.forward([[10.0, 20.0]]), [[96, 156]])
    dx = model.backward([[0.25, -3.0]])
    np.testing.assert_array_equal(model.gradients["0.weight"], [[2.5, 5.0], [-30.0, -60.0]])
    np.testing.assert_array_equal(model.gradients["0.bias"].sum(), 0.25 - 3.0)  # the gradient of one bias for all nodes
    np.testing.assert_array_equal(dx, [[0.25 * 5 - 3 * 3, 0.25 * 2 - 3 * 6]])


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


def test_s14_absorbed_bias_has_the_same_gradients(build, rng):
    plain, absorbed = build([("Linear", 3, 2), ("Sigmoid",)]), build([("Linear", 4, 2, False), ("Sigmoid",)])
    absorbed.load_state_dict({"0.weight": np.column_stack([plain.parameters["0.weight"], plain.parameters["0.bias"]])})
    x, y = rng.normal(size=(9, 3)), rng.random((9, 2))
    loss = fb.MSELoss(reduction="sum", scale=0.5)
    out, value, _, dx = step(plain, loss, x, y)
    _, value_absorbed, _, dtheta = step(absorbed, loss, np.column_stack([x, np.ones(9)]), y)
    close(value, ((y - out) ** 2).sum() / 2)
    close(value_absorbed, value)
    close(absorbed.gradients["0.weight"], np.column_stack([plain.gradients["0.weight"], plain.gradients["0.bias"]]))
    close(dtheta[:, :3], dx)


def test_s14_halved_sum_is_the_mean_times_half_its_count(build, rng):
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
    close(value, -np.log(p[np.arange(8), y]).mean())
    close(dout, ds)
    close(model.gradients["2.weight"], ds.T @ np.maximum(z, 0))
    close(model.gradients["2.bias"], ds.sum(axis=0))
    close(model.gradients["0.weight"], dz.T @ x)
    close(model.gradients["0.bias"], dz.sum(axis=0))
    close(dx, dz @ w1)


def test_s17_examples_as_columns_or_rows_give_the_same_gradients(build, rng):
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

    for mine, column, row in zip([*model.gradients.values(), dx], columns, rows):
        close(column, row)
        close(mine, column.reshape(mine.shape))


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_s18_input_gradient_equals_central_differences(build, rng, activation):
    model = build([("Linear", 5, 7), activation, ("Linear", 7, 7), activation, ("Linear", 7, 3)], seed=2)
    x = rng.normal(size=(5, 5))
    loss = fb.CrossEntropyLoss()
    dx = step(model, loss, x, TARGETS["label"])[3]
    near(dx, reference.central_difference(lambda: loss(model.predict(x), TARGETS["label"]), x))


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
