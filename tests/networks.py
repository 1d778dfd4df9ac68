"""Networks, data and loops that several test files train, and comparison within the bounds of tolerance.py."""
import numpy as np

import reference
import tolerance

MLP = [("Linear", 5, 9), ("Tanh",), ("Linear", 9, 7), ("ReLU",), ("Linear", 7, 3)]
DROPOUT = [("Linear", 5, 9), ("ReLU",), ("Dropout", 0.4), ("Linear", 9, 7), ("Dropout", 0.2), ("Linear", 7, 3)]
LINEAR = [("Linear", 5, 4), ("Identity",), ("Linear", 4, 3)]
OPTIMIZERS = [
    ("SGD", {"lr": 0.05}),
    ("SGD", {"lr": 0.05, "momentum": 0.9}),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    ("Adam", {"lr": 0.01}),
    ("Adam", {"lr": 0.01, "weight_decay": 0.1}),
    ("AdamW", {"lr": 0.01, "weight_decay": 0.1}),
]
N = 47  # six batches of 8, the last of 7


def draw(loss, n=N, inputs=5, outputs=3):
    """x, y, sample weights"""
    rng = np.random.default_rng(7)
    x, w = rng.normal(size=(n, inputs)), rng.random(n) + 0.1
    if loss == "CrossEntropyLoss":
        return x, rng.integers(0, outputs, n), w
    return x, rng.random((n, outputs)) if loss.startswith(("BCE", "Poisson")) else rng.normal(size=(n, outputs)), w


def step(model, loss, x, y, sample_weight=None):
    """Forward, loss, backward: prediction, value, gradient of the prediction, gradient of the input"""
    out = model.forward(x)
    value, dout = loss.value_and_grad(out, y, sample_weight)
    return out, value, dout, model.backward(dout)


def loop(model, x, y, loss, optimizer, epochs, batch_size, seed=None, sample_weight=None):
    """What fit stands for: yields (loss, rows) after each step"""
    rng = None if seed is None else np.random.default_rng(seed)
    for _ in range(epochs):
        for rows in reference.batches(len(x), batch_size, rng):
            weight = None if sample_weight is None else sample_weight[rows]
            _, value, _, _ = step(model, loss, x[rows], y[rows], weight)
            optimizer.step(model)
            yield value, len(rows)


def close(actual, expected):
    """Equal up to rounding: a closed form"""
    np.testing.assert_allclose(actual, expected, rtol=tolerance.CLOSED_FORM, atol=tolerance.CLOSED_FORM, strict=False)


def near(actual, expected):
    """Equal up to the error of central differences"""
    np.testing.assert_allclose(actual, expected, rtol=tolerance.GRADIENT, atol=tolerance.GRADIENT_ABSOLUTE)


def assert_same_bits(a, b):
    np.testing.assert_array_equal(a.flat_parameters, b.flat_parameters)
    assert a.flat_parameters.tobytes() == b.flat_parameters.tobytes()
