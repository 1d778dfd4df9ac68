"""fastbp: one `fit` per turn, on the batches in the order in which the others take them."""

from functools import partial
from inspect import signature

import fastbp as fb
from fastbp import kernels

from ..shapes import MOMENTUM

_ACTIVATIONS = {"relu": fb.ReLU, "tanh": fb.Tanh, "sigmoid": fb.Sigmoid}
_LOSSES = {"mse": fb.MSELoss, "ce": fb.CrossEntropyLoss}


def version():
    return f"fastbp {fb.__version__}"


class Trainer:
    def __init__(self, threads):
        fb.set_num_threads(threads)

    def build(self, net, weights, x, y):
        self.model = _model(net, weights)
        self.optimizer = {"sgd": lambda: fb.SGD(lr=net.lr), "momentum": lambda: fb.SGD(lr=net.lr, momentum=MOMENTUM),
                          "adam": lambda: fb.Adam(lr=net.lr)}[net.optimizer]()
        self.net, self.x, self.y, self.loss_function = net, x, y, _LOSSES[net.loss]()

    def run(self, steps):
        self.model.fit(self.x, self.y, loss=self.loss_function, optimizer=self.optimizer, shuffle=False,
                       epochs=steps // self.net.batches, batch_size=self.net.batch, progress=False)

    def loss(self):
        return self.model.evaluate(self.x, self.y, loss=self.loss_function)["loss"]

    def close(self):
        del self.model, self.optimizer, self.x, self.y


def _model(net, weights):
    *hidden, last = [fb.Linear(w.shape[1], w.shape[0]) for w, _ in weights]
    x = node = fb.Input(net.widths[0])
    for layer in hidden:
        active = _ACTIVATIONS[net.activation]()(layer(node))
        node = node + active if net.skips and node.width == active.width else active
    model = fb.Model(x, last(node), dtype=net.dtype)
    model.load_state_dict(dict(zip(model.parameters, (array for layer in weights for array in layer))))
    return model


def predictor(net, weights, x):
    return partial(_model(net, weights).predict, x)


def _by_position(function, *args, **options):
    """This call as it would be written without names, which `partial` takes longer over than a small kernel lasts."""
    call = signature(function).bind(*args, **options)
    call.apply_defaults()
    return partial(function, *call.args, **call.kwargs)


def _into_out(function):
    """Builder of a function with `out`: what a first call returned is what all others write."""
    return lambda *args, **options: _by_position(function, *args, **options, out=function(*args, **options))


def _in_place(function):
    return lambda *args, **options: _by_position(function, *args, **options)


def _softmax_cross_entropy(scores, labels):
    _, gradient = kernels.softmax_cross_entropy(scores, labels)
    return _by_position(kernels.softmax_cross_entropy, scores, labels, gradient)


_OUT = ("matmul", "linear_forward", "linear_backward", "weight_gradient", "bias_gradient", "relu_forward",
        "relu_backward", "sigmoid_forward", "sigmoid_backward", "tanh_forward", "tanh_backward", "exp", "softmax")
KERNELS = ({name: _into_out(getattr(kernels, name)) for name in _OUT}
           | {name: _in_place(getattr(kernels, name)) for name in ("sgd_update", "adam_update")}
           | {"softmax_cross_entropy": _softmax_cross_entropy})
