"""What fastbp computes, in float64 NumPy: naive on purpose, the executable specification.

Examples are rows. A layer's `_backward` takes the layer's input `x` and the gradient `dy` of its output. A loss returns
(value, gradient with respect to the prediction). Keys of the tables at the end of a section are the public names.
"""
import math

import numpy as np

# --- layers -----------------------------------------------------------------------------------------------


def linear_forward(x, w, b=0.0):
    """f = x wᵀ + b: (B, I), (O, I), (O,) -> (B, O)"""
    return x @ w.T + b


def linear_backward(x, w, df):
    """dx = df w, dw = dfᵀ x, db = 1ᵀ df: (B, I), (O, I), (B, O) -> (B, I), (O, I), (O,)"""
    return df @ w, df.T @ x, df.sum(axis=0)


def dropout_forward(x, mask, p):
    """y = x mask / (1 - p), mask of zeros and ones"""
    return x * mask / (1 - p)


def dropout_backward(dy, mask, p):
    """dx = dy mask / (1 - p)"""
    return dy * mask / (1 - p)


def standardise_forward(x, axis, eps=1e-5):
    """y = (x - mean) / √(var + eps), mean and biased variance along an axis: 1 of a layer norm, 0 of a batch norm"""
    return (x - x.mean(axis=axis, keepdims=True)) / np.sqrt(x.var(axis=axis, keepdims=True) + eps)


def standardise_backward(x, dy, axis, eps=1e-5):
    """dx = (dy - mean(dy) - y mean(dy y)) / √(var + eps), means along the same axis"""
    y = standardise_forward(x, axis, eps)
    centred = dy - dy.mean(axis=axis, keepdims=True) - y * (dy * y).mean(axis=axis, keepdims=True)
    return centred / np.sqrt(x.var(axis=axis, keepdims=True) + eps)


def running(old, batch, momentum=0.1):
    """(1 - momentum) old + momentum batch"""
    return (1 - momentum) * old + momentum * batch


def embedding_forward(numbers, w):
    """y = rows of w, side by side: (B, k), (n, d) -> (B, k d)"""
    return w[numbers].reshape(len(numbers), -1)


def embedding_backward(numbers, w, dy):
    """dw: row r is the sum of dy over the places that hold r"""
    dw = np.zeros_like(w)
    for row, parts in zip(numbers, dy):
        for number, part in zip(row, parts.reshape(len(row), -1)):
            dw[number] += part
    return dw


# --- activations ------------------------------------------------------------------------------------------


def identity_forward(x):
    """y = x"""
    return x


def identity_backward(x, dy):
    """dx = dy"""
    return dy


def relu_forward(x):
    """y = max(x, 0)"""
    return np.maximum(x, 0)


def relu_backward(x, dy):
    """dx = dy 1[x > 0]"""
    return np.where(x > 0, dy, 0)


def leaky_relu_forward(x, negative_slope=0.01):
    """y = x where x > 0, slope x elsewhere"""
    return np.where(x > 0, x, negative_slope * x)


def leaky_relu_backward(x, dy, negative_slope=0.01):
    """dx = dy where x > 0, slope dy elsewhere"""
    return np.where(x > 0, dy, negative_slope * dy)


def sigmoid_forward(x):
    """y = 1 / (1 + e^-x), written with e^-|x| so that nothing overflows"""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, e) / (1 + e)


def sigmoid_backward(x, dy):
    """dx = dy y (1 - y), with 1 - y = sigmoid(-x)"""
    return dy * sigmoid_forward(x) * sigmoid_forward(-x)


def tanh_forward(x):
    """y = tanh x"""
    return np.tanh(x)


def tanh_backward(x, dy):
    """dx = dy (1 - y²), with 1 - y² = 4 sigmoid(2x) sigmoid(-2x)"""
    return dy * 4 * sigmoid_forward(2 * x) * sigmoid_forward(-2 * x)


def softplus_forward(x):
    """y = log(1 + e^x) = max(x, 0) + log1p(e^-|x|)"""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def softplus_backward(x, dy):
    """dx = dy sigmoid(x)"""
    return dy * sigmoid_forward(x)


def normal_cdf(x):
    """Phi(x) = ½ (1 + erf(x/√2)) = ½ erfc(-x/√2), the second without cancellation for negative x"""
    return 0.5 * np.vectorize(math.erfc, otypes=[np.float64])(-np.asarray(x) / math.sqrt(2))


def gelu_forward(x):
    """y = x Phi(x)"""
    return x * normal_cdf(x)


def gelu_backward(x, dy):
    """dx = dy (Phi(x) + x phi(x)), phi the normal density"""
    return dy * (normal_cdf(x) + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi))


def silu_forward(x):
    """y = x sigmoid(x)"""
    return x * sigmoid_forward(x)


def silu_backward(x, dy):
    """dx = dy s (1 + x (1 - s)), s = sigmoid(x)"""
    return dy * sigmoid_forward(x) * (1 + x * sigmoid_forward(-x))


def elu_forward(x):
    """y = x where x > 0, e^x - 1 elsewhere"""
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def elu_backward(x, dy):
    """dx = dy where x > 0, dy e^x elsewhere"""
    return dy * np.exp(np.minimum(x, 0))


def softmax_forward(x):
    """y = e^(x - max) / Σ e^(x - max), along rows"""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def softmax_backward(x, dy):
    """dx = y ⊙ (dy - Σ dy y), along rows"""
    y = softmax_forward(x)
    return y * (dy - (dy * y).sum(axis=-1, keepdims=True))


ACTIVATIONS = {
    "Identity": (identity_forward, identity_backward),
    "ReLU": (relu_forward, relu_backward),
    "LeakyReLU": (leaky_relu_forward, leaky_relu_backward),
    "Sigmoid": (sigmoid_forward, sigmoid_backward),
    "Tanh": (tanh_forward, tanh_backward),
    "Softplus": (softplus_forward, softplus_backward),
    "GELU": (gelu_forward, gelu_backward),
    "SiLU": (silu_forward, silu_backward),
    "ELU": (elu_forward, elu_backward),
    "Softmax": (softmax_forward, softmax_backward),
}

# --- losses: (prediction, target) -> (value, gradient) ------------------------------------------------------


def reduction_factors(shape, sample_weight=None, reduction="mean"):
    """c (B, 1) with value = Σ c_i ℓ_ij: w_i / (O Σ w) for "mean", w_i / Σ w for "batchmean", w_i for "sum\""""
    rows, outputs = shape
    w = np.ones(rows) if sample_weight is None else np.asarray(sample_weight, np.float64)
    divisor = {"mean": outputs * w.sum(), "batchmean": w.sum(), "sum": 1.0}[reduction]
    return (w / divisor)[:, None]


def like(target, prediction):
    """The target as float64 in the prediction's shape, (B,) standing for (B, 1)"""
    return np.asarray(target, np.float64).reshape(prediction.shape)


def mse(prediction, target, sample_weight=None, reduction="mean", scale=1.0):
    """ℓ = scale (p - y)², ℓ' = 2 scale (p - y)"""
    c = reduction_factors(prediction.shape, sample_weight, reduction)
    error = prediction - like(target, prediction)
    return (c * scale * error**2).sum(), c * 2 * scale * error


def l1(prediction, target, sample_weight=None):
    """ℓ = |p - y|, ℓ' = sign(p - y)"""
    c = reduction_factors(prediction.shape, sample_weight)
    error = prediction - like(target, prediction)
    return (c * np.abs(error)).sum(), c * np.sign(error)


def huber(prediction, target, sample_weight=None, delta=1.0):
    """ℓ = ½ e² where |e| <= δ, δ (|e| - ½ δ) elsewhere; ℓ' = e limited to [-δ, δ]"""
    c = reduction_factors(prediction.shape, sample_weight)
    error = prediction - like(target, prediction)
    size = np.abs(error)
    value = np.where(size <= delta, 0.5 * error**2, delta * (size - 0.5 * delta))
    return (c * value).sum(), c * np.clip(error, -delta, delta)


def quantile(prediction, target, sample_weight=None, quantile=0.5):
    """ℓ = q |e| where p < y, (1-q) |e| where p > y; ℓ' = -q, 1-q, and 0 at e = 0"""
    c = reduction_factors(prediction.shape, sample_weight)
    error = prediction - like(target, prediction)
    slope = np.where(error > 0, 1 - quantile, np.where(error < 0, -quantile, 0.0))
    return (c * slope * error).sum(), c * slope


def poisson(prediction, target, sample_weight=None):
    """ℓ = e^z - y z + y log y - y with 0 log 0 = 0, ℓ' = e^z - y"""
    c = reduction_factors(prediction.shape, sample_weight)
    z, y = prediction, like(target, prediction)
    value = np.exp(z) - y * z + y * np.log(np.where(y > 0, y, 1)) - y
    return (c * value).sum(), c * (np.exp(z) - y)


def bce(prediction, target, sample_weight=None):
    """ℓ = -y log p - (1-y) log(1-p), logs at least -100; ℓ' = (p - y) / max(p (1-p), 1e-12)"""
    c = reduction_factors(prediction.shape, sample_weight)
    p, y = prediction, like(target, prediction)
    with np.errstate(divide="ignore"):
        value = -y * np.maximum(np.log(p), -100) - (1 - y) * np.maximum(np.log1p(-p), -100)
    return (c * value).sum(), c * (p - y) / np.maximum(p * (1 - p), 1e-12)


def bce_with_logits(prediction, target, sample_weight=None):
    """ℓ = max(z, 0) - z y + log1p(e^-|z|), ℓ' = sigmoid(z) - y"""
    c = reduction_factors(prediction.shape, sample_weight)
    z, y = prediction, like(target, prediction)
    value = (np.maximum(z, 0) - z * y) + np.log1p(np.exp(-np.abs(z)))
    return (c * value).sum(), c * (sigmoid_forward(z) - y)


def cross_entropy(prediction, target, sample_weight=None, label_smoothing=0.0):
    """ℓ = Σ_c t_c (logsumexp(s) - s_c), ℓ' = softmax(s) Σ t - t; t smoothed to (1-ε) t + ε/C, labels made one-hot"""
    c = reduction_factors((len(prediction), 1), sample_weight)
    classes = prediction.shape[1]
    target = np.asarray(target)
    t = np.eye(classes)[target] if target.ndim == 1 else target.astype(np.float64)
    t = (1 - label_smoothing) * t + label_smoothing / classes
    s = prediction - prediction.max(axis=1, keepdims=True)
    value = (t * (np.log(np.exp(s).sum(axis=1, keepdims=True)) - s)).sum(axis=1, keepdims=True)
    return (c * value).sum(), c * (softmax_forward(s) * t.sum(axis=1, keepdims=True) - t)


LOSSES = {
    "MSELoss": mse,
    "L1Loss": l1,
    "HuberLoss": huber,
    "QuantileLoss": quantile,
    "PoissonLoss": poisson,
    "BCELoss": bce,
    "BCEWithLogitsLoss": bce_with_logits,
    "CrossEntropyLoss": cross_entropy,
}

# --- optimizers: in place on {name: array}, PyTorch's rules ---------------------------------------------------


class SGD:
    """g += λ p;  v = μ v + g;  p -= η (g + μ v if nesterov, else v)"""

    def __init__(self, lr, momentum=0.0, nesterov=False, weight_decay=0.0):
        self.lr, self.momentum, self.nesterov, self.weight_decay = lr, momentum, nesterov, weight_decay
        self.velocity = {}

    def step(self, parameters, gradients):
        for name, p in parameters.items():
            g = gradients[name] + self.weight_decay * p
            v = self.velocity[name] = self.momentum * self.velocity.get(name, 0.0) + g
            p -= self.lr * (g + self.momentum * v if self.nesterov else v)


class Adam:
    """g += λ p;  m, v = means of g, g²;  p -= η m/(1-β1ᵗ) / (√(v/(1-β2ᵗ)) + ε)"""

    def __init__(self, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.t, self.m, self.v = 0, {}, {}

    def decayed(self, p, g):
        """The gradient after weight decay"""
        return g + self.weight_decay * p

    def step(self, parameters, gradients):
        self.t += 1
        beta1, beta2 = self.betas
        for name, p in parameters.items():
            g = self.decayed(p, gradients[name])
            m = self.m[name] = beta1 * self.m.get(name, 0.0) + (1 - beta1) * g
            v = self.v[name] = beta2 * self.v.get(name, 0.0) + (1 - beta2) * g**2
            p -= self.lr * m / (1 - beta1**self.t) / (np.sqrt(v / (1 - beta2**self.t)) + self.eps)


class AdamW(Adam):
    """p -= η λ p, then Adam without decay"""

    def __init__(self, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        super().__init__(lr, betas, eps, weight_decay)

    def decayed(self, p, g):
        p -= self.lr * self.weight_decay * p
        return g


OPTIMIZERS = {"SGD": SGD, "Adam": Adam, "AdamW": AdamW}


def clip_by_global_norm(gradients, max_norm):
    """g *= min(1, max_norm / (‖all g‖ + 1e-6)), in place"""
    norm = math.sqrt(sum((g**2).sum() for g in gradients.values()))
    for g in gradients.values():
        g *= min(1.0, max_norm / (norm + 1e-6))


# --- a network and its training -----------------------------------------------------------------------------


class Network:
    """A chain such as [("Linear", 3, 4), ("LeakyReLU", 0.2)]; parameters "0.weight", "0.bias"; masks {layer: mask}"""

    def __init__(self, layers, parameters, masks=None):
        self.layers, self.masks = layers, masks or {}
        self.parameters = {name: np.array(p, np.float64) for name, p in parameters.items()}
        self.gradients = {}

    def forward(self, x):
        """x (B, I) -> (B, O); keeps every layer's input for backward"""
        self.inputs = []
        x = np.asarray(x, np.float64)
        for i, (kind, *options) in enumerate(self.layers):
            self.inputs.append(x)
            if kind == "Linear":
                x = linear_forward(x, self.parameters[f"{i}.weight"], self.parameters.get(f"{i}.bias", 0.0))
            elif kind == "Dropout":
                x = dropout_forward(x, self.masks[i], *options) if i in self.masks else x
            else:
                x = ACTIVATIONS[kind][0](x, *options)
        return x

    def backward(self, dy):
        """dy (B, O) -> dx (B, I); overwrites the gradients"""
        for i, (kind, *options) in reversed(list(enumerate(self.layers))):
            x = self.inputs[i]
            if kind == "Linear":
                dy, dw, db = linear_backward(x, self.parameters[f"{i}.weight"], dy)
                self.gradients[f"{i}.weight"] = dw
                if f"{i}.bias" in self.parameters:
                    self.gradients[f"{i}.bias"] = db
            elif kind == "Dropout":
                dy = dropout_backward(dy, self.masks[i], *options) if i in self.masks else dy
            else:
                dy = ACTIVATIONS[kind][1](x, dy, *options)
        return dy

    def train_step(self, x, y, loss, optimizer, sample_weight=None, clip_norm=None):
        """Forward, loss, backward, update; the loss before the update"""
        value, dy = loss(self.forward(x), y, sample_weight)
        self.backward(dy)
        if clip_norm is not None:
            clip_by_global_norm(self.gradients, clip_norm)
        optimizer.step(self.parameters, self.gradients)
        return value


def batches(n, batch_size, rng=None):
    """Index arrays of one epoch, the last one smaller; rows in the order of one rng.permutation(n), or as they are"""
    order = np.arange(n) if rng is None else rng.permutation(n)
    return [order[i : i + batch_size] for i in range(0, n, batch_size)]


def central_difference(f, x, step=1e-4):
    """df/dx of a scalar f(), x perturbed in place: [8 (f₊₁ - f₋₁) - (f₊₂ - f₋₂)] / 12h, error O(h⁴)"""
    gradient = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        centre = x[index]
        values = []
        for k in (1, -1, 2, -2):
            x[index] = centre + k * step
            values.append(f())
        x[index] = centre
        gradient[index] = (8 * (values[0] - values[1]) - (values[2] - values[3])) / (12 * step)
    return gradient
