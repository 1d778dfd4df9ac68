"""The same training in plain NumPy, written to be fast: what fastbp is measured against.

Every array is allocated once and every operation writes into one: the last argument of each call is where it writes.
Parameters and gradients are flat, so that an update is a few calls however many layers there are. Of several ways to
write an operation the fastest measured one stands here, hence `a.dot(b, out)` (0.7 µs less overhead than matmul),
constants as arrays without dimensions (0.4 µs less than Python numbers), column sums as products with ones.

Shapes: B examples, I inputs and O outputs of a layer; w (O, I), b (O,), activations g (B, O), delta = dL/d(x wᵀ + b).
"""

import numpy as np


class NumpyTrainer:
    """Dense network: linear layers, one activation between them, none after the last.

    Args:
        weights: list of ``(w (O, I), b (O,))``, copied; their type, float32 or float64, is that of all arithmetic.
        activation: "relu", "tanh" or "sigmoid".
        loss: "mse" (mean over all elements) or "ce" (softmax cross-entropy, integer labels, mean over rows).
        optimizer: "sgd", "momentum" or "adam", each as PyTorch defines it.
        lr, momentum, betas, eps: what the optimizer takes of them.
    """

    def __init__(self, weights, *, activation, loss, optimizer, lr, momentum=0.9, betas=(0.9, 0.999), eps=1e-8):
        flat = np.concatenate([array.ravel() for layer in weights for array in layer])
        self.parameters, self.gradients = flat, np.empty_like(flat)
        self.layers = list(zip(_views(flat, weights), _views(self.gradients, weights)))
        self.activate, self.activate_backward = _ACTIVATIONS[activation](flat.dtype)
        self.value, self.delta = _LOSSES[loss]
        settings = {"sgd": (lr,), "momentum": (lr, momentum), "adam": (lr, *betas, eps)}[optimizer]
        self.update = _OPTIMIZERS[optimizer](flat, *settings)
        self._workspaces = {}

    def fit(self, x, y, *, epochs, batch_size, seed):
        """Train on shuffled minibatches: one ``permutation(len(x))`` per epoch, a smaller last batch kept."""
        rng = np.random.default_rng(seed)
        xb, yb = np.empty((batch_size, *x.shape[1:]), x.dtype), np.empty((batch_size, *y.shape[1:]), y.dtype)
        for _ in range(epochs):
            order = rng.permutation(len(x))
            for start in range(0, len(x), batch_size):
                rows = order[start : start + batch_size]
                # "clip" lets take write straight into the batch; the default would go through a buffer.
                self.step(x.take(rows, 0, xb[: len(rows)], "clip"), y.take(rows, 0, yb[: len(rows)], "clip"))

    def step(self, x, y):
        """One update from the batch ``x`` (B, I), ``y`` (B,) or (B, O)."""
        work = self._workspace(len(x))
        self._forward(x, work)
        self.delta(work, y)
        for index in range(len(self.layers) - 1, -1, -1):
            (w, _), (dw, db) = self.layers[index]
            delta = work.deltas[index]
            delta.T.dot(work.outputs[index - 1] if index else x, dw)
            work.ones.dot(delta, db)
            if index:
                delta.dot(w, work.deltas[index - 1])
                self.activate_backward(work.outputs[index - 1], work.deltas[index - 1], work.scratch[index - 1])
        self.update(self.gradients)

    def predict(self, x):
        """Outputs (B, O) for ``x`` (B, I); overwritten by the next call with as many rows."""
        return self._forward(x, self._workspace(len(x)))

    def loss(self, x, y):
        """Mean loss over all rows of ``x``, ``y``, summed in float64."""
        return float(self.value(self.predict(x).astype(np.float64), y))

    def _forward(self, x, work):
        last = len(self.layers) - 1
        for index, ((w, b), _) in enumerate(self.layers):
            x = x.dot(w.T, work.outputs[index])
            np.add(x, b, x)
            if index < last:
                self.activate(x, work.scratch[index], work.masks[index])
        return x

    def _workspace(self, rows):
        if rows not in self._workspaces:
            self._workspaces[rows] = _Workspace(rows, [len(b) for (_, b), _ in self.layers], self.parameters.dtype)
        return self._workspaces[rows]


class _Workspace:
    """Every array that a step on ``rows`` examples writes, and its constants."""

    def __init__(self, rows, widths, dtype):
        self.outputs, self.deltas, self.scratch = ([np.empty((rows, width), dtype) for width in widths] for _ in "123")
        self.masks = [np.empty((rows, width), bool) for width in widths]
        self.ones, self.ones_column = np.ones(rows, dtype), np.ones((widths[-1], 1), dtype)
        self.row, self.row_starts = np.empty((rows, 1), dtype), np.arange(rows) * widths[-1]
        self.positions, self.flat_delta = np.empty(rows, np.int64), self.deltas[-1].reshape(-1)
        self.rows, self.per_row = np.array(rows, dtype), np.array(1 / rows, dtype)
        self.twice_per_element = np.array(2 / (rows * widths[-1]), dtype)


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


# Activations: forward(g, scratch, mask) in place, backward(g, delta, scratch) from the output g and the same scratch.


def _relu(dtype):
    zero = np.array(0, dtype)

    def forward(g, slope, mask):
        np.greater(g, zero, mask)
        np.copyto(slope, mask)  # two products by a slope of 0 or 1 take less time than maximum and a product by a mask
        np.multiply(g, slope, g)

    def backward(g, delta, slope):
        np.multiply(delta, slope, delta)

    return forward, backward


def _tanh(dtype):
    one = np.array(1, dtype)

    def forward(g, scratch, mask):
        np.tanh(g, g)

    def backward(g, delta, scratch):
        np.multiply(g, g, scratch)
        np.subtract(one, scratch, scratch)
        np.multiply(delta, scratch, delta)

    return forward, backward


def _sigmoid(dtype):
    half = np.array(0.5, dtype)

    def forward(g, scratch, mask):
        np.multiply(g, half, g)
        np.tanh(g, g)  # ½ tanh(x/2) + ½ takes half the time of 1 / (1 + e^-x)
        np.multiply(g, half, g)
        np.add(g, half, g)

    def backward(g, delta, scratch):
        np.multiply(g, g, scratch)
        np.subtract(g, scratch, scratch)
        np.multiply(delta, scratch, delta)

    return forward, backward


# Losses: value(prediction, y) in float64; delta(work, y) writes dL/dprediction to work.deltas[-1].


def _mse(prediction, y):
    return np.mean((prediction - y) ** 2)


def _mse_delta(work, y):
    np.subtract(work.outputs[-1], y, work.deltas[-1])
    np.multiply(work.deltas[-1], work.twice_per_element, work.deltas[-1])


def _ce(scores, y):
    top = scores.max(axis=1)
    return np.mean(top + np.log(np.exp(scores - top[:, None]).sum(axis=1)) - scores[np.arange(len(y)), y])


def _ce_delta(work, y):
    """(softmax(scores) - onehot(y)) / B, the division by B folded into that by the row's sum."""
    scores, delta, row = work.outputs[-1], work.deltas[-1], work.row
    np.maximum.reduce(scores, axis=1, keepdims=True, out=row)
    np.subtract(scores, row, delta)
    np.exp(delta, delta)
    delta.dot(work.ones_column, row)
    np.multiply(row, work.rows, row)
    np.divide(delta, row, delta)
    np.add(work.row_starts, y, work.positions)
    work.flat_delta[work.positions] -= work.per_row


# Optimizers: update(g) changes the parameters p; g may be overwritten.


def _sgd(p, lr):
    lr = np.array(lr, p.dtype)

    def update(g):
        np.multiply(g, lr, g)
        np.subtract(p, g, p)

    return update


def _momentum(p, lr, momentum):
    lr, momentum = np.array(lr, p.dtype), np.array(momentum, p.dtype)
    v, step = np.zeros_like(p), np.empty_like(p)

    def update(g):
        np.multiply(v, momentum, v)
        np.add(v, g, v)
        np.multiply(v, lr, step)
        np.subtract(p, step, p)

    return update


def _adam(p, lr, beta1, beta2, eps):
    keep1, add1, keep2, add2 = (np.array(value, p.dtype) for value in (beta1, 1 - beta1, beta2, 1 - beta2))
    m, v, t, steps = np.zeros_like(p), np.zeros_like(p), np.empty_like(p), 0

    def update(g):
        nonlocal steps
        steps += 1
        root = (1 - beta2**steps) ** 0.5
        np.multiply(m, keep1, m)
        np.multiply(g, add1, t)
        np.add(m, t, m)
        np.multiply(v, keep2, v)
        np.multiply(g, g, t)
        np.multiply(t, add2, t)
        np.add(v, t, v)
        np.sqrt(v, t)
        np.add(t, eps * root, t)  # both bias corrections are folded into eps and the rate
        np.divide(m, t, t)
        np.multiply(t, lr * root / (1 - beta1**steps), t)
        np.subtract(p, t, p)

    return update


_ACTIVATIONS = {"relu": _relu, "tanh": _tanh, "sigmoid": _sigmoid}
_LOSSES = {"mse": (_mse, _mse_delta), "ce": (_ce, _ce_delta)}
_OPTIMIZERS = {"sgd": _sgd, "momentum": _momentum, "adam": _adam}
