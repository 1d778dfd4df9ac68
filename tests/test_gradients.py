"""Gradients: central differences and the reference for every layer and loss. The systems of docs/by-hand are in test_systems.py."""
import numpy as np
import pytest

import fastbp as fb
import reference
import tolerance
from networks import close, near, step

ACTIVATIONS = [(name,) for name in reference.ACTIVATIONS] + [("LeakyReLU", 0.3)]
# (name, options, target of five rows and three outputs)
LOSSES = [
    ("MSELoss", {}, "real"),
    ("MSELoss", {"reduction": "batchmean", "scale": 0.5}, "real"),
    ("MSELoss", {"reduction": "sum", "scale": 0.3}, "real"),
    ("L1Loss", {}, "real"),
    ("HuberLoss", {}, "real"),
    ("HuberLoss", {"delta": 0.4}, "real"),
    ("QuantileLoss", {"quantile": 0.3}, "real"),
    ("PoissonLoss", {}, "probability"),
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
