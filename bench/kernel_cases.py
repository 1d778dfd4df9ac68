"""Every function of `fastbp.kernels`: inputs, what tests/reference.py says of them, how its work is counted."""

import importlib.util
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path

import numpy as np

from . import shapes

LR, MOMENTUM, BETAS, EPS, STEP = 1e-3, 0.9, (0.9, 0.999), 1e-8, 5


@cache
def _reference():
    """tests/reference.py, by its path: the tests are no package."""
    path = Path(__file__).parents[1] / "tests" / "reference.py"
    spec = importlib.util.spec_from_file_location("reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _product(rng, dtype, orientation, m, k, n):
    a = _normal(rng, dtype, k, m).T if orientation == "tn" else _normal(rng, dtype, m, k)
    b = _normal(rng, dtype, n, k).T if orientation == "nt" else _normal(rng, dtype, k, n)
    return (a, b), lambda ref, a, b: a @ b


def _linear(rng, dtype, activation, rows, inputs, outputs):
    def expected(ref, x, w, b):
        return getattr(ref, f"{activation}_forward")(ref.linear_forward(x, w, b))

    # Weights as small as a network's, or the activations would be saturated.
    w = _normal(rng, dtype, outputs, inputs) / np.sqrt(inputs, dtype=dtype)
    return (_normal(rng, dtype, rows, inputs), w, _normal(rng, dtype, outputs)), expected


def _linear_backward(rng, dtype, _, rows, inputs, outputs):
    arrays = _normal(rng, dtype, rows, inputs), _normal(rng, dtype, outputs, inputs), _normal(rng, dtype, rows, outputs)
    return arrays, lambda ref, x, w, dy: ref.linear_backward(x, w, dy)


def _weight_gradient(rng, dtype, _, rows, inputs, outputs):
    arrays = _normal(rng, dtype, rows, inputs), _normal(rng, dtype, rows, outputs)
    return arrays, lambda ref, x, delta: ref.linear_backward(x, np.zeros((outputs, inputs)), delta)[1]


def _bias_gradient(rng, dtype, _, rows, outputs):
    return (_normal(rng, dtype, rows, outputs),), lambda ref, delta: delta.sum(axis=0)


def _forward(rng, dtype, name, *shape):
    return (_normal(rng, dtype, *shape),), lambda ref, x: getattr(ref, f"{name}_forward")(x)


def _exp(rng, dtype, _, *shape):
    return (_normal(rng, dtype, *shape),), lambda ref, x: np.exp(x)


def _backward(rng, dtype, name, *shape):
    """The kernel is given y, the reference the x behind it."""
    x = _normal(rng, dtype, *shape)
    y = getattr(_reference(), f"{name}_forward")(x).astype(dtype)
    exact = x.astype(np.float64)
    return (y, _normal(rng, dtype, *shape)), lambda ref, y, dy: getattr(ref, f"{name}_backward")(exact, dy)


def _cross_entropy(rng, dtype, _, rows, classes):
    arrays = _normal(rng, dtype, rows, classes), rng.integers(classes, size=rows)
    return arrays, lambda ref, scores, labels: ref.cross_entropy(scores, labels)


def _sgd(rng, dtype, momentum, size):
    def expected(ref, param, grad, lr, velocity=None, momentum=0.0):
        optimizer = ref.SGD(lr, momentum)
        optimizer.velocity["p"] = 0.0 if velocity is None else velocity
        optimizer.step({"p": param}, {"p": grad})
        return param, optimizer.velocity["p"]

    velocity = (_normal(rng, dtype, size), momentum) if momentum else ()
    return (_normal(rng, dtype, size), _normal(rng, dtype, size), LR, *velocity), expected


def _adam(rng, dtype, _, size):
    def expected(ref, param, grad, m, v, step, lr, betas, eps, weight_decay):
        optimizer = ref.Adam(lr, betas, eps, weight_decay)
        optimizer.t, optimizer.m["p"], optimizer.v["p"] = step - 1, m, v
        optimizer.step({"p": param}, {"p": grad})
        return param, optimizer.m["p"], optimizer.v["p"]

    arrays = [_normal(rng, dtype, size) for _ in range(4)]
    return (*arrays[:3], np.square(arrays[3]), STEP, LR, BETAS, EPS, 0.0), expected


def _normal(rng, dtype, *shape):
    return rng.standard_normal(shape).astype(dtype)


@dataclass(frozen=True)
class Kernel:
    """label: row of the table. work(shape, itemsize) counts `unit`s; terms(shape) is the length of the longest sum.

    results: positions of the arguments that the call changes; none if it returns its results.
    """

    label: str
    function: str
    shapes: dict
    make: object
    unit: str
    work: object
    variant: object = None
    terms: object = lambda shape: 1
    options: tuple = ()
    results: tuple = ()


def _flops(factor):
    return lambda shape, itemsize: factor * prod(shape)


def _elements(shape, itemsize):
    return prod(shape)


def _traffic(arrays):
    """Bytes: how many arrays are read and written in all."""
    return lambda shape, itemsize: arrays * prod(shape) * itemsize


def _kernels():
    for orientation in ("nt", "nn", "tn"):
        yield Kernel(f"matmul {orientation}", "matmul", shapes.PRODUCTS, _product, "flop", _flops(2), orientation,
                     terms=lambda shape: shape[1])
    for activation in ("identity", "relu", "tanh"):
        options = () if activation == "identity" else (("activation", activation),)
        yield Kernel(f"linear {activation}", "linear_forward", shapes.LAYERS, _linear, "flop", _flops(2), activation,
                     terms=lambda shape: shape[1], options=options)
    yield Kernel("linear backward", "linear_backward", shapes.LAYERS, _linear_backward, "flop", _flops(4), terms=max)
    yield Kernel("weight gradient", "weight_gradient", shapes.LAYERS, _weight_gradient, "flop", _flops(2), terms=max)
    yield Kernel("bias gradient", "bias_gradient", shapes.ELEMENTWISE, _bias_gradient, "element", _elements, terms=max)
    for name in ("relu", "sigmoid", "tanh"):
        for direction, make in (("forward", _forward), ("backward", _backward)):
            yield Kernel(f"{name} {direction}", f"{name}_{direction}", shapes.ELEMENTWISE, make, "element", _elements,
                         name)
    yield Kernel("exp", "exp", shapes.ELEMENTWISE, _exp, "element", _elements)
    yield Kernel("softmax", "softmax", shapes.SCORES, _forward, "element", _elements, "softmax", terms=max)
    yield Kernel("cross-entropy", "softmax_cross_entropy", shapes.SCORES, _cross_entropy, "element", _elements,
                 terms=max)
    yield Kernel("sgd", "sgd_update", shapes.PARAMETERS, _sgd, "byte", _traffic(3), results=(0,))
    yield Kernel("momentum", "sgd_update", shapes.PARAMETERS, _sgd, "byte", _traffic(5), MOMENTUM, results=(0, 3))
    yield Kernel("adam", "adam_update", shapes.PARAMETERS, _adam, "byte", _traffic(7), results=(0, 2, 3))


KERNELS = {kernel.label: kernel for kernel in _kernels()}


@dataclass(frozen=True)
class Case:
    """One kernel on one shape in one type: small enough to be sent to another process."""

    label: str
    shape: str
    dtype: str

    @property
    def kernel(self):
        return KERNELS[self.label]

    @property
    def function(self):
        return self.kernel.function

    @property
    def work(self):
        """Units of work, see `Kernel.unit`, in one call."""
        return self.kernel.work(self.kernel.shapes[self.shape], np.dtype(self.dtype).itemsize)

    def build(self, builder):
        """(call, error): the call ready to be timed, and its worst error so far over what rounding allows.

        An error is measured against the largest value of its array; allowed are 8 eps times the square root of the
        length of the longest sum, for roundings of a sum cancel.
        """
        kernel, shape = self.kernel, self.kernel.shapes[self.shape]
        arguments, expected = kernel.make(np.random.default_rng(0), self.dtype, kernel.variant, *shape)
        exact = [argument.astype(np.float64) if _is_real(argument) else argument for argument in arguments]
        expected = expected(_reference(), *exact)
        call = builder(*arguments, **dict(kernel.options))
        returned = call()
        results = [arguments[position] for position in kernel.results] or returned
        pairs = zip(results, expected) if isinstance(expected, tuple) else ((results, expected),)
        allowed = 8 * np.finfo(self.dtype).eps * kernel.terms(shape) ** 0.5
        return call, max(_relative_error(np.asarray(result), want) for result, want in pairs) / allowed


def _is_real(argument):
    return isinstance(argument, np.ndarray) and argument.dtype.kind == "f"


def _relative_error(actual, expected):
    if actual.shape != np.shape(expected):
        raise ValueError(f"result of shape {actual.shape}, expected {np.shape(expected)}")
    return float(np.max(np.abs(actual - expected)) / np.max(np.abs(expected)))


def select_cases(names):
    """Cases whose kernel, function, shape or type is among the names; all for none."""
    cases = [Case(label, shape, dtype) for label, kernel in KERNELS.items() for shape in kernel.shapes
             for dtype in ("float32", "float64")]
    chosen = [case for case in cases
              if not names or {case.label, case.function, case.shape, case.dtype} & set(names)]
    if not chosen:
        raise ValueError(f"--shapes: no kernel, function, shape or type named {', '.join(names)}")
    return chosen
