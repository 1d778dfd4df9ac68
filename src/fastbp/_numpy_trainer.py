"""The same training in plain NumPy, written to be fast: what fastbp is measured against.

Every array is allocated once, every operation writes into one (``out=``), parameters and gradients are flat so that an
update is a few calls however many layers there are. Of several ways to write an operation, the fastest measured one
stands here.

Shapes: B examples, I inputs and O outputs of a layer; w (O, I), b (O,), activations g (B, O), delta = dL/d(g wᵀ + b).
"""

import numpy as np


class NumpyTrainer:
    """Dense network: linear layers, one activation between them, none after the last.

    Args:
        weights: list of ``(w (O, I), b (O,))``, copied; their type is the type of all arithmetic.
        activation: "relu", "tanh" or "sigmoid".
        loss: "mse" (mean over all elements) or "ce" (softmax cross-entropy, integer labels, mean over rows).
        optimizer: "sgd", "momentum" or "adam", each as PyTorch defines it.
    """

    def __init__(self, weights, *, activation, loss, optimizer, lr, momentum=0.9, betas=(0.9, 0.999), eps=1e-8):
        self.parameters = np.concatenate([array.ravel() for layer in weights for array in layer])
        self.gradients = np.empty_like(self.parameters)
        self.layers = list(zip(_views(self.parameters, weights), _views(self.gradients, weights)))
        self.activate, self.activate_backward = _ACTIVATIONS[activation]
        self.value, self.delta = _LOSSES[loss]
        settings = {"sgd": (lr,), "momentum": (lr, momentum), "adam": (lr, *betas, eps)}[optimizer]
        self.update = _OPTIMIZERS[optimizer](self.parameters, *settings)
        self._workspaces = {}

    def fit(self, x, y, *, epochs, batch_size, seed):
        """Train on shuffled minibatches: one ``permutation(len(x))`` per epoch, a smaller last batch kept."""
        rng = np.random.default_rng(seed)
        xb, yb = np.empty((batch_size, x.shape[1]), x.dtype), np.empty((batch_size, *y.shape[1:]), y.dtype)
        for _ in range(epochs):
            order = rng.permutation(len(x))
            for start in range(0, len(x), batch_size):
                rows = order[start : start + batch_size]
                # mode="clip" lets take write straight into `out`; "raise" would go through a buffer.
                x_rows = np.take(x, rows, axis=0, out=xb[: len(rows)], mode="clip")
                y_rows = np.take(y, rows, axis=0, out=yb[: len(rows)], mode="clip")
                self.step(x_rows, y_rows)

    def step(self, x, y):
        """One update from the batch ``x`` (B, I), ``y`` (B,) or (B, O)."""
        work = self._workspace(len(x))
        self._forward(x, work)
        self.delta(work, y)
        for index in reversed(range(len(self.layers))):
            (w, _), (dw, db) = self.layers[index]
            delta = work.deltas[index]
            np.matmul(delta.T, work.outputs[index - 1] if index else x, out=dw)
            np.matmul(work.ones, delta, out=db)  # a product is quicker than a sum over rows
            if index:
                before = work.deltas[index - 1]
                np.matmul(delta, w, out=before)
                self.activate_backward(work.outputs[index - 1], before, work.scratch[index - 1], work.masks[index - 1])
        self.update(self.gradients)

    def predict(self, x):
        """Outputs (B, O) for ``x`` (B, I); overwritten by the next call with as many rows."""
        return self._forward(x, self._workspace(len(x)))

    def loss(self, x, y):
        """Mean loss over all rows of ``x``, ``y``, summed in float64."""
        return float(self.value(self.predict(x).astype(np.float64), y))

    def _forward(self, x, work):
        for index, ((w, b), _) in enumerate(self.layers):
            x = np.matmul(x, w.T, out=work.outputs[index])
            np.add(x, b, out=x)
            if index < len(self.layers) - 1:
                self.activate(x)
        return x

    def _workspace(self, rows):
        if rows not in self._workspaces:
            self._workspaces[rows] = _Workspace(rows, [len(b) for (_, b), _ in self.layers], self.parameters.dtype)
        return self._workspaces[rows]


class _Workspace:
    """Every array that a step on ``rows`` examples writes."""

    def __init__(self, rows, widths, dtype):
        self.outputs, self.deltas, self.scratch = ([np.empty((rows, width), dtype) for width in widths] for _ in "123")
        self.masks = [np.empty((rows, width), bool) for width in widths]
        self.ones = np.ones(rows, dtype)
        self.ones_column = np.ones((widths[-1], 1), dtype)
        self.row = np.empty((rows, 1), dtype)
        self.row_starts = np.arange(rows) * widths[-1]
        self.positions = np.empty(rows, np.int64)


def _views(flat, weights):
    """Cut ``flat`` into ``(w, b)`` views, layer by layer."""
    views, start = [], 0
    for layer in weights:
        pair = []
        for array in layer:
            pair.append(flat[start : start + array.size].reshape(array.shape))
            start += array.size
        views.append(tuple(pair))
    return views


def _relu(g):
    np.maximum(g, 0, out=g)


def _relu_backward(g, delta, scratch, mask):
    np.greater(g, 0, out=mask)
    np.multiply(delta, mask, out=delta)


def _tanh(g):
    np.tanh(g, out=g)


def _tanh_backward(g, delta, scratch, mask):
    np.multiply(g, g, out=scratch)
    np.subtract(1, scratch, out=scratch)
    np.multiply(delta, scratch, out=delta)


def _sigmoid(g):
    np.negative(g, out=g)
    np.exp(g, out=g)
    np.add(g, 1, out=g)
    np.reciprocal(g, out=g)


def _sigmoid_backward(g, delta, scratch, mask):
    np.multiply(g, g, out=scratch)
    np.subtract(g, scratch, out=scratch)
    np.multiply(delta, scratch, out=delta)


def _mse(prediction, y):
    return np.mean((prediction - y) ** 2)


def _mse_delta(work, y):
    delta = np.subtract(work.outputs[-1], y, out=work.deltas[-1])
    np.multiply(delta, 2 / delta.size, out=delta)


def _ce(scores, y):
    top = scores.max(axis=1)
    return np.mean(top + np.log(np.exp(scores - top[:, None]).sum(axis=1)) - scores[np.arange(len(y)), y])


def _ce_delta(work, y):
    """(softmax(scores) − onehot(y)) / B, the division by B folded into that by the row's sum."""
    scores, delta, row = work.outputs[-1], work.deltas[-1], work.row
    np.maximum.reduce(scores, axis=1, keepdims=True, out=row)
    np.subtract(scores, row, out=delta)
    np.exp(delta, out=delta)
    np.matmul(delta, work.ones_column, out=row)
    np.multiply(row, len(y), out=row)
    np.divide(delta, row, out=delta)
    np.add(work.row_starts, y, out=work.positions)
    delta.reshape(-1)[work.positions] -= 1 / len(y)


def _sgd(p, lr):
    def update(g):
        np.multiply(g, lr, out=g)
        np.subtract(p, g, out=p)

    return update


def _momentum(p, lr, momentum):
    v, step = np.zeros_like(p), np.empty_like(p)

    def update(g):
        np.multiply(v, momentum, out=v)
        np.add(v, g, out=v)
        np.multiply(v, lr, out=step)
        np.subtract(p, step, out=p)

    return update


def _adam(p, lr, beta1, beta2, eps):
    m, v, t, steps = np.zeros_like(p), np.zeros_like(p), np.empty_like(p), 0

    def update(g):
        nonlocal steps
        steps += 1
        root = (1 - beta2**steps) ** 0.5
        np.multiply(m, beta1, out=m)
        np.multiply(g, 1 - beta1, out=t)
        np.add(m, t, out=m)
        np.multiply(v, beta2, out=v)
        np.multiply(g, g, out=t)
        np.multiply(t, 1 - beta2, out=t)
        np.add(v, t, out=v)
        np.sqrt(v, out=t)
        np.add(t, eps * root, out=t)  # both bias corrections folded into eps and the rate
        np.divide(m, t, out=t)
        np.multiply(t, lr * root / (1 - beta1**steps), out=t)
        np.subtract(p, t, out=p)

    return update


_ACTIVATIONS = {"relu": (_relu, _relu_backward), "tanh": (_tanh, _tanh_backward), "sigmoid": (_sigmoid, _sigmoid_backward)}
_LOSSES = {"mse": (_mse, _mse_delta), "ce": (_ce, _ce_delta)}
_OPTIMIZERS = {"sgd": _sgd, "momentum": _momentum, "adam": _adam}
