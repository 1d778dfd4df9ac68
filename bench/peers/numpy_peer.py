"""NumPy: outputs preallocated, the type of the data throughout, no copies; the trainer is the one of the demo.

The expressions follow fastbp/_numpy_trainer.py, which gives the reasons: `a.dot(b, out)`, constants without dimensions.
"""

import numpy as np
from fastbp._numpy_trainer import NumpyTrainer

from ..shapes import MOMENTUM


def version():
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return f"NumPy {np.__version__} ({blas['name']} {blas['version']})"


class Trainer:
    def __init__(self, threads):
        """The number of threads is BLAS's, from the environment."""

    def build(self, net, weights, x, y):
        if net.skips:
            raise ValueError(f"{net.name}: this peer has no skip connections, choose others by --peers")
        self.trainer = NumpyTrainer(weights, activation=net.activation, loss=net.loss, optimizer=net.optimizer,
                                    lr=net.lr, momentum=MOMENTUM)
        self.x, self.y = x, y
        self.batches = list(zip(np.split(x, net.batches), np.split(y, net.batches)))

    def run(self, steps):
        for _ in range(steps // len(self.batches)):
            for x, y in self.batches:
                self.trainer.step(x, y)

    def loss(self):
        return self.trainer.loss(self.x, self.y)

    def close(self):
        del self.trainer, self.batches, self.x, self.y


def predictor(net, weights, x):
    """The lines that one writes: a product, a bias and an activation per layer, into arrays that are there."""
    activations = [net.activation] * (len(weights) - 1) + [None]
    calls, h = [], x
    for (w, b), activation in zip(weights, activations):
        calls.append(_linear_forward(h, w, b, activation))
        h = calls[-1]()   # which every call fills again

    def predict():
        for call in calls:
            out = call()
        return out

    return predict


def _matmul(a, b):
    out = np.empty((a.shape[0], b.shape[1]), a.dtype)
    return lambda: a.dot(b, out)


def _linear_forward(x, w, b, activation=None):
    wt, out, zero = w.T, np.empty((len(x), len(w)), x.dtype), np.zeros((), x.dtype)
    activate = {None: lambda: out, "relu": lambda: np.maximum(out, zero, out),
                "tanh": lambda: np.tanh(out, out), "sigmoid": _sigmoid_forward(out, out)}[activation]

    def call():
        x.dot(wt, out)
        np.add(out, b, out)
        return activate()

    return call


def _linear_backward(x, w, dy):
    dx, dw, db, ones = np.empty_like(x), np.empty_like(w), np.empty_like(dy[0]), np.ones(len(dy), dy.dtype)

    def call():
        dy.dot(w, dx)
        dy.T.dot(x, dw)
        ones.dot(dy, db)
        return dx, dw, db

    return call


def _bias_gradient(delta):
    ones, out = np.ones(len(delta), delta.dtype), np.empty_like(delta[0])
    return lambda: ones.dot(delta, out)


def _elementwise(function):
    def build(x):
        out = np.empty_like(x)
        return lambda: function(x, out)

    return build


def _relu_forward(x):
    out, zero = np.empty_like(x), np.zeros((), x.dtype)
    return lambda: np.maximum(x, zero, out)


def _relu_backward(y, dy):
    out, mask, zero = np.empty_like(dy), np.empty(y.shape, bool), np.zeros((), y.dtype)

    def call():
        np.greater(y, zero, mask)
        return np.multiply(dy, mask, out)

    return call


def _sigmoid_forward(x, out=None):
    out, half = np.empty_like(x) if out is None else out, np.full((), 0.5, x.dtype)

    def call():
        np.multiply(x, half, out)
        np.tanh(out, out)
        np.multiply(out, half, out)
        return np.add(out, half, out)

    return call


def _sigmoid_backward(y, dy):
    out, one = np.empty_like(dy), np.ones((), y.dtype)

    def call():
        np.subtract(one, y, out)
        np.multiply(out, y, out)
        return np.multiply(out, dy, out)

    return call


def _tanh_backward(y, dy):
    out, one = np.empty_like(dy), np.ones((), y.dtype)

    def call():
        np.multiply(y, y, out)
        np.subtract(one, out, out)
        return np.multiply(out, dy, out)

    return call


def _softmax(scores):
    out, row, ones = np.empty_like(scores), np.empty_like(scores[:, :1]), np.ones_like(scores[0][:, None])

    def call():
        np.maximum.reduce(scores, axis=1, keepdims=True, out=row)
        np.subtract(scores, row, out)
        np.exp(out, out)
        out.dot(ones, row)
        return np.divide(out, row, out)

    return call


def _softmax_cross_entropy(scores, labels):
    softmax, rows = _softmax(scores), np.full((), len(scores), scores.dtype)
    positions = np.arange(len(scores)) * scores.shape[1] + labels

    def call():
        out = softmax()
        picked = out.reshape(-1)[positions]
        value = -np.log(picked, picked).mean()
        out.reshape(-1)[positions] -= 1
        return value, np.divide(out, rows, out)

    return call


def _sgd_update(param, grad, lr, velocity=None, momentum=0.0):
    scratch, lr, momentum = np.empty_like(param), np.array(lr, param.dtype), np.array(momentum, param.dtype)

    def call():
        if velocity is None:
            np.multiply(grad, lr, scratch)
        else:
            np.multiply(velocity, momentum, velocity)
            np.add(velocity, grad, velocity)
            np.multiply(velocity, lr, scratch)
        np.subtract(param, scratch, param)

    return call


def _adam_update(param, grad, m, v, step, lr, betas, eps, weight_decay):
    """Without decay; both bias corrections folded into eps and the rate, which saves two passes."""
    beta1, beta2 = betas
    root, t = (1 - beta2**step) ** 0.5, np.empty_like(param)
    keep1, add1, keep2, add2, shift, rate = (np.array(value, param.dtype) for value in (
        beta1, 1 - beta1, beta2, 1 - beta2, eps * root, lr * root / (1 - beta1**step)))

    def call():
        np.multiply(m, keep1, m)
        np.multiply(grad, add1, t)
        np.add(m, t, m)
        np.multiply(v, keep2, v)
        np.multiply(grad, grad, t)
        np.multiply(t, add2, t)
        np.add(v, t, v)
        np.sqrt(v, t)
        np.add(t, shift, t)
        np.divide(m, t, t)
        np.multiply(t, rate, t)
        np.subtract(param, t, param)

    return call


KERNELS = {
    "matmul": _matmul,
    "linear_forward": _linear_forward,
    "linear_backward": _linear_backward,
    "weight_gradient": lambda x, delta: _matmul(delta.T, x),
    "bias_gradient": _bias_gradient,
    "relu_forward": _relu_forward,
    "relu_backward": _relu_backward,
    "sigmoid_forward": _sigmoid_forward,
    "sigmoid_backward": _sigmoid_backward,
    "tanh_forward": _elementwise(np.tanh),
    "tanh_backward": _tanh_backward,
    "exp": _elementwise(np.exp),
    "softmax": _softmax,
    "softmax_cross_entropy": _softmax_cross_entropy,
    "sgd_update": _sgd_update,
    "adam_update": _adam_update,
}
