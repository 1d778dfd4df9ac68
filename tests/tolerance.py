"""Every tolerance of the tests, with its reason. Nothing else in tests/ contains one.

u = eps/2 is the unit roundoff: one correctly rounded operation has a relative error of at most u.
"""
import math

import numpy as np


def unit_roundoff(dtype):
    """2⁻²⁴ for float32, 2⁻⁵³ for float64"""
    return float(np.finfo(dtype).eps) / 2


def gauge_bound(dtype, k):
    """|fl(Σ x w + b) - (Σ x w + b)| <= gauge_bound(dtype, k) (Σ |x||w| + |b|) for a dot product of length k.

    k FMAs and the bias make k + 1 roundings, so k + 2 covers them and their second-order terms whatever the order of
    summation (Higham, Accuracy and Stability, 3.1). For long sums the roundings partly cancel: with λ = 8 the bound
    λ √k u fails with probability below 2 k e^(-λ²/2) (Higham and Mary, 2019), once in 10^9 products of length 10^4.
    The two meet at k = 62. It is below the figure of research/reliability.md, N2: 16 eps up to k = 64, k/4 eps beyond.
    """
    return min(k + 2, 8 * math.sqrt(k + 2)) * unit_roundoff(dtype)


# Largest error in ULP against the exact value; research/reliability.md, N6. elu is expm1, which has log1p's goal.
_ULP = {"exp": 1, "log": 1, "relu": 0, "leaky_relu": 0.5, "identity": 0, "tanh": 2, "sigmoid": 2, "softplus": 2,
        "elu": 2, "sin": 1, "cos": 1, "sqrt": 0.5, "reciprocal": 0.5, "square": 0.5, "gelu": 4, "silu": 4, "loss": 4, "sgd": 1}


def elementwise_ulp(name):
    """ULP allowed for an elementwise function of this name"""
    return _ULP[name]


def ulp_error(actual, exact, dtype):
    """|actual - exact| in units of exact's last place in dtype, element-wise; 0 for equal specials, inf for unequal"""
    info = np.finfo(dtype)
    actual, exact = np.asarray(actual, np.longdouble), np.asarray(exact, np.longdouble)
    _, exponent = np.frexp(np.where(np.isfinite(exact), exact, 1))
    exponent = np.where(exact == 0, info.minexp, np.clip(exponent - 1, info.minexp, info.maxexp - 1))
    with np.errstate(invalid="ignore"):
        error = np.abs(actual - exact) / np.ldexp(np.longdouble(1), exponent - info.nmant)
    same = (actual == exact) | (np.isnan(actual) & np.isnan(exact))
    return np.where(same, 0, np.where(np.isnan(error), np.inf, error)).astype(np.float64)


# A closed form of docs/by-hand in float64 (the specification's figure): products here are shorter than 100 terms, some 80 u = 1e-14
# relative to the terms, which leaves two digits for cancellation among them.
CLOSED_FORM = 1e-12

# Central differences of reference.py, step 1e-4: truncation h⁴ f⁽⁵⁾/30 ~ 1e-17, rounding 10 u |f| / h ~ 1e-10. The
# relative figure is the goal of the brief (PyTorch's gradcheck: 1e-3); the absolute one is for gradients near zero.
GRADIENT = 1e-7
GRADIENT_ABSOLUTE = 1e-9

# A sum over an epoch of values kept in double, whatever the dtype: only their own roundings differ.
EPOCH_SUM = 1e-12

# An iteration run to convergence: what is left of a contraction, not of rounding.
CONVERGED = 1e-9

# ½ |C''| of a cross-entropy through bounded activations: what remains of a change of the cost after its first order.
SECOND_ORDER = 1.0

def standardised(dtype, n):
    """Absolute error of n standardised values and of their gradients, inputs of order 1: the mean and the variance are sums of n terms, each off by
    gauge_bound of a gauge of about 2, a handful of roundings follow, and dividing by √(var + eps) magnifies by at most 1/√eps where n values are all
    but equal. The tests draw values of spread 1, whose variance over n >= 2 is above 1/100: a factor of 10.
    """
    return 10 * 8 * gauge_bound(dtype, n)


# Standard deviations a random frequency may be off: beyond six, one draw in 5e8.
SIGMAS = 6


def trajectory(dtype, steps):
    """Relative drift of parameters from the float64 reference after a number of training steps.

    One step of five layers makes ten products of length <= 100, each off by at most 80 u of its gauge: 400 eps. The
    learning rates of the tests let an error grow by less than e^1.6 = 5 along a run. Errors of the steps add.
    """
    return steps * 2000 * float(np.finfo(dtype).eps)


def peer(dtype):
    """Relative distance from PyTorch: 20 steps in float64, one step in float32; the figures are the project's goals.

    In float64 trajectory() gives 1e-11, and Adam, whose update changes by η/ε = 1e5 per unit of gradient where a
    gradient vanishes, costs two digits more. In float32 one step is 2 x 400 eps = 1e-4 of the largest update.
    """
    return {"float64": 1e-9, "float32": 2e-4}[np.dtype(dtype).name]

# Distance of a random graph's float64 values, gradients and five training steps from PyTorch's, relative to the largest of an array: up to 40
# operations on values of order 1, some of which grow by products and quotients. The figure is the project's goal.
GRAPH = 1e-10
