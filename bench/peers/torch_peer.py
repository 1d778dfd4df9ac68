"""PyTorch: eager and functional, fused optimizers, gradients set to None, batches cut beforehand, no data loader."""

import re

import torch
from torch.nn import functional

from ..shapes import MOMENTUM

_ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}
_LOSSES = {"mse": functional.mse_loss, "ce": functional.cross_entropy}


def version():
    mkl = re.search(r"Math Kernel Library Version (\S+)", torch.__config__.show())
    return (f"PyTorch {torch.__version__} ({'MKL ' + mkl[1] if mkl else 'no MKL'}, "
            f"{torch.backends.cpu.get_cpu_capability()})")


class Trainer:
    def __init__(self, threads):
        torch.set_num_threads(threads)
        torch.set_flush_denormal(True)

    def build(self, net, weights, x, y):
        self.parameters = [tuple(torch.tensor(array, requires_grad=True) for array in layer) for layer in weights]
        flat = [array for layer in self.parameters for array in layer]
        self.optimizer = {
            "sgd": lambda: torch.optim.SGD(flat, lr=net.lr, fused=True),
            "momentum": lambda: torch.optim.SGD(flat, lr=net.lr, momentum=MOMENTUM, fused=True),
            "adam": lambda: torch.optim.Adam(flat, lr=net.lr, fused=True),
        }[net.optimizer]()
        self.skips = net.skips
        self.activation, self.loss_function = _ACTIVATIONS[net.activation], _LOSSES[net.loss]
        self.x, self.y = torch.from_numpy(x), torch.from_numpy(y)
        self.batches = list(zip(self.x.split(net.batch), self.y.split(net.batch)))

    def run(self, steps):
        for _ in range(steps // len(self.batches)):
            for x, y in self.batches:
                self.optimizer.zero_grad(set_to_none=True)
                self._loss(x, y).backward()
                self.optimizer.step()

    def loss(self):
        with torch.no_grad():
            return self._loss(self.x, self.y).item()

    def close(self):
        del self.parameters, self.optimizer, self.batches, self.x, self.y

    def _loss(self, x, y):
        *hidden, (w, b) = self.parameters
        for layer in hidden:
            h = self.activation(functional.linear(x, *layer))
            x = x + h if self.skips and x.shape == h.shape else h
        return self.loss_function(functional.linear(x, w, b), y)


def predictor(net, weights, x):
    x, activation = torch.from_numpy(x), _ACTIVATIONS[net.activation]
    *hidden, last = [_tensors(*layer) for layer in weights]

    def predict():
        h = x
        with torch.inference_mode():
            for w, b in hidden:
                h = activation(functional.linear(h, w, b))
            return functional.linear(h, *last)

    return predict


def _tensors(*arrays):
    return [torch.from_numpy(array) for array in arrays]


def _matmul(a, b):
    a, b = _tensors(a, b)
    out = a @ b
    return lambda: torch.matmul(a, b, out=out)


def _linear_forward(x, w, b, activation=None):
    x, w, b = _tensors(x, w, b)
    out = x @ w.T
    activate = {None: None, "relu": torch.relu_, "tanh": torch.tanh_}[activation]

    def call():
        torch.addmm(b, x, w.T, out=out)
        return activate(out) if activate else out

    return call


def _linear_backward(x, w, dy):
    x, w, dy = _tensors(x, w, dy)
    dx, dw, db = torch.empty_like(x), torch.empty_like(w), torch.empty_like(dy[0])

    def call():
        torch.matmul(dy, w, out=dx)
        torch.matmul(dy.T, x, out=dw)
        torch.sum(dy, 0, out=db)
        return dx, dw, db

    return call


def _bias_gradient(delta):
    (delta,) = _tensors(delta)
    out = delta.sum(0)
    return lambda: torch.sum(delta, 0, out=out)


def _elementwise(function):
    def build(x):
        (x,) = _tensors(x)
        out = torch.empty_like(x)
        return lambda: function(x, out=out)

    return build


def _elementwise_backward(function, *options):
    def build(y, dy):
        y, dy = _tensors(y, dy)
        out = torch.empty_like(dy)
        return lambda: function(dy, y, *options, grad_input=out)

    return build


def _softmax_cross_entropy(scores, labels):
    scores, labels = _tensors(scores, labels)
    scores.requires_grad_()

    def call():
        scores.grad = None
        value = functional.cross_entropy(scores, labels)
        value.backward()
        return value.detach(), scores.grad

    return call


def _sgd_update(param, grad, lr, velocity=None, momentum=0.0):
    param, grad = _tensors(param, grad)
    param.grad = grad
    optimizer = torch.optim.SGD([param], lr=lr, momentum=momentum, fused=True)
    if velocity is not None:
        optimizer.state[param]["momentum_buffer"] = torch.from_numpy(velocity)
    return optimizer.step


def _adam_update(param, grad, m, v, step, lr, betas, eps, weight_decay):
    param, grad, m, v = _tensors(param, grad, m, v)
    param.grad = grad
    optimizer = torch.optim.Adam([param], lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)
    optimizer.state[param].update(step=torch.tensor(float(step - 1)), exp_avg=m, exp_avg_sq=v)
    return optimizer.step


_backward = torch.ops.aten
KERNELS = {
    "matmul": _matmul,
    "linear_forward": _linear_forward,
    "linear_backward": _linear_backward,
    "weight_gradient": lambda x, delta: _matmul(delta.T, x),
    "bias_gradient": _bias_gradient,
    "relu_forward": _elementwise(lambda x, out: torch.clamp_min(x, 0, out=out)),
    "relu_backward": _elementwise_backward(_backward.threshold_backward.grad_input, 0),
    "sigmoid_forward": _elementwise(torch.sigmoid),
    "sigmoid_backward": _elementwise_backward(_backward.sigmoid_backward.grad_input),
    "tanh_forward": _elementwise(torch.tanh),
    "tanh_backward": _elementwise_backward(_backward.tanh_backward.grad_input),
    "exp": _elementwise(torch.exp),
    "softmax": _elementwise(lambda x, out: torch.softmax(x, 1, out=out)),
    "softmax_cross_entropy": _softmax_cross_entropy,
    "sgd_update": _sgd_update,
    "adam_update": _adam_update,
}
