"""Functions of independent elements, and softmax: accuracy, special values, order, position, layout.

Every function runs through the kernels' table as the layers do; those that fastbp.kernels offers run through it.
"""
import functools

import mpmath as mp
import numpy as np
import pytest
import reference
from kernel_cases import FUSED, ISAS, Framed, extended, for_every_number_of_threads, isa, placed, representable, same_bits, selected, tile  # noqa: F401
from tolerance import elementwise_ulp, ulp_error, unit_roundoff

import fastbp as fb
from fastbp import _core
from fastbp import kernels as K

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, about inf - inf and the like in what is expected

# --- the functions ----------------------------------------------------------------------------------------------------

SLOPE = float(np.float32(0.01))  # of leaky_relu: a number that both types have
ALPHA = {"leaky_relu": SLOPE, "elu": 1.0}
OFFERED = {"relu": (K.relu_forward, K.relu_backward), "sigmoid": (K.sigmoid_forward, K.sigmoid_backward),
           "tanh": (K.tanh_forward, K.tanh_backward), "exp": (K.exp, None)}
FUNCTIONS = sorted(_core.ACTIVATIONS)
CURVED = [name for name in FUNCTIONS if name not in ("identity", "relu", "leaky_relu")]
FROM_INPUT = ("softplus", "gelu", "silu")  # their derivative is taken at the input, that of the others from the output
OUTSIDE = {"log": lambda x: x < 0, "sqrt": lambda x: x < 0, "sin": np.isinf, "cos": np.isinf}  # where a function has no value


def forward(name, x, out=None):
    if name in OFFERED:
        return OFFERED[name][0](x, out)
    return _core.map_forward(_core.ACTIVATIONS[name], x, np.empty_like(x) if out is None else out, ALPHA.get(name, 0))


def backward(name, s, dy, out=None):
    if OFFERED.get(name, (None, None))[1]:
        return OFFERED[name][1](s, dy, out)
    return _core.map_backward(_core.ACTIVATIONS[name], s, dy, np.empty_like(s) if out is None else out, ALPHA.get(name, 0))


# The exact functions: at 50 digits for float64, in float64 for float32. Limits where a formula gives inf - inf or 0 inf.
LIMITS = {"gelu": {-np.inf: 0.0}, "silu": {-np.inf: 0.0}}
EXACT = {"identity": lambda x: x, "relu": lambda x: max(x, 0), "leaky_relu": lambda x: x if x > 0 else SLOPE * x,
         "sigmoid": lambda x: 1 / (1 + mp.exp(-x)), "tanh": mp.tanh, "elu": lambda x: x if x > 0 else mp.expm1(x), "exp": mp.exp,
         "softplus": lambda x: mp.log1p(mp.exp(x)) if x < 100 else x + mp.exp(-x), "gelu": lambda x: x * mp.ncdf(x) if abs(x) < 1000 else max(x, 0),
         "silu": lambda x: x / (1 + mp.exp(-x)), "sin": mp.sin, "cos": mp.cos, "square": lambda x: x * x, "reciprocal": lambda x: 1 / x,
         "log": lambda x: mp.log(x) if x > 0 else mp.nan, "sqrt": lambda x: mp.sqrt(x) if x >= 0 else mp.nan}
DERIVATIVE = {"softplus": lambda x: 1 / (1 + mp.exp(-x)), "gelu": lambda x: mp.ncdf(x) + x * mp.npdf(x) if abs(x) < 1000 else float(x > 0),
              "silu": lambda x: (1 + x / (1 + mp.exp(x))) / (1 + mp.exp(-x))}
IN_DOUBLE = {name: getattr(reference, f"{name}_forward") for name in FUNCTIONS if hasattr(reference, f"{name}_forward")} | {
    "exp": np.exp, "log": np.log, "sqrt": np.sqrt, "sin": np.sin, "cos": np.cos, "square": np.square, "reciprocal": np.reciprocal, "leaky_relu": lambda x: reference.leaky_relu_forward(x, SLOPE)}
DERIVATIVE_IN_DOUBLE = {name: lambda x, name=name: getattr(reference, f"{name}_backward")(x, 1.0) for name in FROM_INPUT}


@functools.cache
def in_double(name, table="value"):
    """The function on SWEEP, for float32"""
    x = SWEEP.astype(np.float64)
    function = (IN_DOUBLE if table == "value" else DERIVATIVE_IN_DOUBLE)[name]
    y = function(x)
    for at, limit in LIMITS.get(name, {}).items():
        y = np.where(x == at, limit, y)
    return representable(y, np.float32)


@functools.cache
def at_50_digits(name, dtype, table="value"):
    """The function on points(dtype), in extended precision"""
    function = (EXACT if table == "value" else DERIVATIVE)[name]

    def value(x):
        if np.isnan(x):
            return np.nan
        if np.isinf(x) or x == 0:
            with np.errstate(all="ignore"):
                return LIMITS.get(name, {}).get(x, (IN_DOUBLE if table == "value" else DERIVATIVE_IN_DOUBLE)[name](np.float64(x)))
        with mp.workdps(50):
            return extended(function(mp.mpf(float(x))))

    return representable(np.array([value(x) for x in points(dtype)], np.longdouble), dtype)


# --- the arguments ----------------------------------------------------------------------------------------------------

# Where something happens: 0, subnormals, branches of the formulas, the ends of the range of e^x, log and its like.
SEAMS = [0.0, 1e-45, 1e-40, 1e-38, 1.1754943508222875e-38, 1e-30, 1e-8, 2.4e-4, 0.1, 0.34657359, 0.5, 0.5625, 0.6931472, 0.75, 1.0, 1.278, 2.0, 4.0,
         5.0, 8.0, 9.010913, 9.1, 10.0, 14.1, 14.6, 16.6, 17.0, 17.33, 18.0, 18.7, 19.0, 19.1, 20.0, 32.0, 33.3, 36.0, 37.0, 38.0, 38.7, 40.0, 64.0,
         87.0, 87.33655, 88.0, 88.37, 88.7, 88.722839, 89.0, 90.0, 103.27, 103.97208, 104.0, 110.0, 127.0, 128.0, 512.0, 708.0, 708.39641853226408,
         709.0, 709.78271289338397, 710.0, 745.0, 745.13321910194122, 746.0, 753.0, 1e4, 8388608.0, 1e30, 3.4028234663852886e38]


@functools.cache
def points(dtype):
    """Seams with their neighbours, both signs, and some hundred random numbers of every size"""
    info, rng = np.finfo(dtype), np.random.default_rng(3)
    seams = np.array([*SEAMS, info.max, info.smallest_subnormal, info.smallest_normal], np.float64).astype(dtype)
    around = [seams, np.nextafter(seams, np.array(np.inf, dtype)), np.nextafter(seams, np.array(-np.inf, dtype))]
    random = np.concatenate([10 ** rng.uniform(np.log10(float(info.smallest_subnormal)), 3, 150), rng.uniform(0, 20, 100), rng.uniform(0, 760, 50)])
    positive = np.concatenate([*around, random.astype(dtype), [np.inf]]).astype(dtype)
    return np.concatenate([positive, -positive, [np.nan]]).astype(dtype)


# Every 9973rd of all float32 numbers, NaNs included
SWEEP = np.arange(0, 2**32, 9973, dtype=np.uint64).astype(np.uint32).view(np.float32)


@functools.cache
def ladder():
    """float32 numbers in ascending order: those of SWEEP and a thousand neighbours in a row at each seam"""
    at = np.array([s for s in SEAMS if s], np.float32).view(np.int32)
    neighbours = (at[:, None] + np.arange(-500, 500)).clip(0, np.float32(np.inf).view(np.int32)).ravel().astype(np.int32).view(np.float32)
    return np.unique(np.concatenate([SWEEP[~np.isnan(SWEEP)], neighbours, -neighbours]))


# --- accuracy -----------------------------------------------------------------------------------------------------------


def worst(name, x, actual, exact, dtype):
    """(largest error in ULP, its argument)"""
    wrong = ~((actual == exact.astype(dtype)) | (np.isnan(actual) & np.isnan(exact)))  # the others are rounded correctly
    if not wrong.any():
        return 0.0, None
    error = ulp_error(actual[wrong], exact[wrong], dtype)
    return error.max(), x[wrong][error.argmax()]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float32_function_is_accurate_over_the_whole_range(isa, name):
    error, x = worst(name, SWEEP, forward(name, SWEEP), in_double(name), np.float32)
    assert error <= elementwise_ulp(name), (error, x)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_is_accurate_at_special_values(isa, dtype, name):
    """Against 50 digits: zeros, subnormals, infinities, NaN, the neighbours of every seam"""
    x = points(dtype)
    error, at = worst(name, x, forward(name, x), at_50_digits(name, dtype), dtype)
    assert error <= elementwise_ulp(name), (error, at)


def second_term(name, x):
    """Of the derivative of x g(x), g(x) + x g'(x): near its zero (gelu -0.75, silu -1.28) an error is relative to the terms, not to their sum"""
    x = np.abs(x.astype(np.float64))
    return {"softplus": lambda: 0 * x, "gelu": lambda: x * np.exp(-x * x / 2) / np.sqrt(2 * np.pi), "silu": lambda: x * np.exp(-x)}[name]()


@pytest.mark.parametrize("name", FROM_INPUT)
def test_derivative_taken_at_the_input_is_accurate(isa, dtype, name):
    """Within the function's ULP of the larger of the two terms that it is the sum of"""
    info = np.finfo(dtype)
    for x, exact in [(points(dtype), at_50_digits(name, dtype, "derivative"))] + [(SWEEP[::7].copy(), in_double(name, "derivative")[::7])] * (dtype == "float32"):
        actual = backward(name, x, np.ones_like(x))
        limit = np.isinf(x)
        assert np.array_equal(actual[limit], (x[limit] > 0).astype(dtype))
        assert np.array_equal(np.isnan(actual), np.isnan(x))
        x, actual, exact = (array[np.isfinite(x)] for array in (x, actual, exact))
        error = np.abs(actual - exact) / (np.maximum(np.abs(exact), second_term(name, x)) * info.eps + info.smallest_subnormal)
        assert error.max() <= elementwise_ulp("sigmoid" if name == "softplus" else name), (error.max(), x[error.argmax()])


ROUNDINGS = {"identity": 0, "relu": 0, "leaky_relu": 1, "exp": 1, "elu": 2, "sigmoid": 3, "tanh": 2, "sqrt": 2, "reciprocal": 2}  # of the formulas below


@pytest.mark.parametrize("name", sorted(ROUNDINGS))
def test_derivative_taken_from_the_output_is_its_formula(isa, dtype, rng, name):
    """dy f'(y) with as many roundings as it has operations; without FMA y² has one of its own, which 1 - y² may magnify"""
    wide = np.longdouble if dtype == "float64" else np.float64
    y = np.concatenate([rng.uniform(-1, 1, 1000), [0.0, -0.0, 1.0, -1.0, 0.5]]).astype(dtype)
    y = np.abs(y) if name in ("sigmoid", "exp") else y
    y = np.abs(y) + np.array(0.1, dtype) if name == "sqrt" else y
    dy = rng.standard_normal(y.size).astype(dtype)
    Y, DY = y.astype(wide), dy.astype(wide)
    exact = {"identity": DY, "relu": np.where(Y > 0, DY, 0), "leaky_relu": np.where(Y > 0, DY, SLOPE * DY), "exp": DY * Y,
             "elu": np.where(Y > 0, DY, DY * (Y + 1)), "sigmoid": DY * Y * (1 - Y), "tanh": DY * (1 - Y * Y),
             "sqrt": DY / 2 / np.where(Y == 0, 1, Y), "reciprocal": -DY * Y * Y}[name]
    bound = np.abs(exact) * (ROUNDINGS[name] + 1 / 100)
    if name == "tanh" and isa == "baseline":
        bound = bound + np.abs(DY) * Y * Y * 1.01
    assert (np.abs(backward(name, y, dy) - exact) <= bound * unit_roundoff(dtype)).all()


@pytest.mark.parametrize("name", sorted(set(ROUNDINGS) - {"sqrt"}))
def test_derivative_at_zero_and_at_nan(isa, dtype, name):
    """ReLU'(0) = 0, of either zero. NaN in the gradient stays NaN, but where a ReLU is off. At NaN itself ReLU has slope 1 and LeakyReLU its
    slope, as in PyTorch; the others have NaN."""
    y = np.array([0.0, -0.0, np.nan, np.nan, 0.5, 0.5, -0.5], dtype)
    dy = np.array([3.0, 3.0, 3.0, np.nan, np.nan, np.inf, np.nan], dtype)
    actual = backward(name, y, dy)
    slope = np.array(SLOPE, dtype) * dy[0]
    at_zero = {"identity": 3, "relu": 0, "leaky_relu": slope, "exp": 0, "elu": 3, "sigmoid": 0, "tanh": 3, "reciprocal": 0}[name]
    at_nan = {"identity": 3, "relu": 3, "leaky_relu": slope}.get(name, np.nan)
    assert np.array_equal(actual[:3], np.array([at_zero, at_zero, at_nan], dtype), equal_nan=True)
    assert np.isnan(actual[3:5]).all() and actual[5] == (-np.inf if name == "reciprocal" else np.inf)
    assert actual[6] == 0 if name == "relu" else np.isnan(actual[6])


@pytest.mark.parametrize("name", ["log", "sin", "cos", "square"])
def test_other_derivatives_taken_at_the_input_are_their_formulas(isa, dtype, rng, name):
    """dy f'(x): three roundings, and those of the function"""
    x = rng.uniform(0.1, 4, 1001).astype(dtype)
    dy = rng.standard_normal(x.size).astype(dtype)
    wide = np.longdouble if dtype == "float64" else np.float64
    X, DY = x.astype(wide), dy.astype(wide)
    exact = DY * {"log": lambda: 1 / X, "sin": lambda: np.cos(X), "cos": lambda: -np.sin(X), "square": lambda: 2 * X}[name]()
    assert (np.abs(backward(name, x, dy) - exact) <= np.abs(exact) * (3 + 2 * elementwise_ulp(name)) * unit_roundoff(dtype)).all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nan_stays_nan_and_comes_from_nowhere(isa, dtype, name):
    x = np.concatenate([points(dtype), SWEEP.astype(dtype)])
    assert np.array_equal(np.isnan(forward(name, x)), np.isnan(x) | OUTSIDE.get(name, np.isnan)(x))


# --- order, symmetry, range ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "exp", "softplus", "relu", "leaky_relu", "elu"])
def test_function_is_monotone(isa, name):
    y = forward(name, ladder())
    assert (y[1:] >= y[:-1]).all()


def test_tanh_is_odd_bit_for_bit(isa, dtype):
    for x in (points(dtype), ladder().astype(dtype)):
        assert same_bits(forward("tanh", -x), -forward("tanh", x))


def test_range_of_sigmoid_and_tanh(isa, dtype):
    for x in (points(dtype), ladder().astype(dtype)):
        x = x[~np.isnan(x)]
        sigmoid, tanh = forward("sigmoid", x), forward("tanh", x)
        assert (sigmoid >= 0).all() and (sigmoid <= 1).all()
        assert (np.abs(tanh) <= 1).all()


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "tanh", "elu", "gelu", "silu"])
def test_function_keeps_the_sign_of_its_argument(isa, dtype, name):
    """Also where it underflows, and of zero, as in PyTorch; but what ReLU cuts off is +0"""
    x = points(dtype)[~np.isnan(points(dtype))]
    y = forward(name, x)
    assert not np.signbit(y[x > 0]).any()
    if name == "relu":
        assert not y[x < 0].any() and not np.signbit(y[x < 0]).any()
    else:
        assert np.signbit(y[np.signbit(x)]).all()
    assert np.array_equal(np.signbit(y[x == 0]), np.signbit(x[x == 0]))


# --- an element's result depends on the element and on nothing else ---------------------------------------------------------


def ring(dtype, size):
    """Special values of all kinds, `size` of them"""
    return np.resize(np.array([0.3, -0.0, np.nan, -90, 1e-40, np.inf, -1.5, -np.inf, 88.73, 17.5, -1e-310, -103.5, 0.0, 5e-324, 1e30, -0.7, 2], dtype), size)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_element_does_not_depend_on_its_position(isa, dtype, name):
    """Lengths up to four vectors and three, every offset within a cache line; what lies around is not written"""
    longest = 4 * tile(isa, dtype).VL + 3
    values = ring(dtype, longest)
    alone = np.array([forward(name, values[i : i + 1])[0] for i in range(longest)], dtype)
    for n in range(1, longest + 1):
        out = Framed((n,), dtype, at=8 * n % 64)
        for at in range(0, 64, values.itemsize):
            out.array.fill(np.nan)
            assert same_bits(forward(name, placed(values[:n], at), out.array), alone[:n]), (n, at)
        assert out.intact()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_element_does_not_depend_on_how_far_the_result_lies_ahead(isa, dtype, name):
    """Of all distances, modulo 4096: passes go from the end where the result is a little ahead, and long ones begin at a whole cache line"""
    for n in (3, 70, 1500):
        values = ring(dtype, n)
        expected = forward(name, values)
        room = np.empty(4 * 4096, np.uint8)
        for ahead in (0, 8, 56, 64, 1016, 1024, 2048, 4088):
            x = placed(values, 8)
            start = (x.ctypes.data + ahead - room.ctypes.data) % 4096
            out = room[start : start + x.nbytes].view(dtype)
            out.fill(np.nan)
            assert same_bits(forward(name, x, out), expected), (n, ahead)


@pytest.mark.parametrize("name", ["relu", "sigmoid", "tanh"])
@pytest.mark.parametrize(("at", "longer"), [(0, 0), (8, 15), (56, 2), (56, 13)], ids=str)
def test_element_does_not_depend_on_whether_the_result_goes_past_the_caches(isa, dtype, name, at, longer):
    """Eight megabytes of a thread and more, from the beginning of a cache line and from others; what lies around is not written"""
    n, few = (8 << 20) // np.dtype(dtype).itemsize + longer, 1021
    values, dys = np.resize(ring(dtype, few), n), np.resize(np.roll(ring(dtype, few), 5), n)
    expected, expected_derivative = np.resize(forward(name, values[:few]), n), np.resize(backward(name, values[:few], dys[:few]), n)
    x, out = placed(values, 8), Framed((n,), dtype, at)
    with fb.num_threads(1):
        assert same_bits(forward(name, x, out.array), expected)
        assert same_bits(backward(name, x, dys, out.array), expected_derivative)
        assert out.intact()
        assert same_bits(forward(name, x, x), expected)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_element_of_a_derivative_does_not_depend_on_its_position(isa, dtype, name):
    longest = 4 * tile(isa, dtype).VL + 3
    s, dy = ring(dtype, longest), np.roll(ring(dtype, longest)[::-1], 5)
    alone = np.array([backward(name, s[i : i + 1], dy[i : i + 1])[0] for i in range(longest)], dtype)
    for n in range(1, longest + 1):
        out = Framed((n,), dtype, at=8 * n % 64)
        for at in range(0, 64, 3 * s.itemsize):
            out.array.fill(np.nan)
            assert same_bits(backward(name, placed(s[:n], at), placed(dy[:n], 56 - at // 8 * 8), out.array), alone[:n]), (n, at)
        assert out.intact()


def test_functions_are_the_same_for_every_number_of_threads(isa, dtype, rng):
    """Shares are whole multiples of 1024 elements"""
    cases = [rng.standard_normal((2, n)).astype(dtype) for n in (1025, 7 * 1024 + 1)]
    results = for_every_number_of_threads(lambda: [f for x, dy in cases for name in FUNCTIONS for f in (forward(name, x), backward(name, x, dy))])
    assert all(same_bits(a, b) for result in results for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_is_the_same_for_every_instruction_set(dtype, name):
    x = np.concatenate([points(dtype), SWEEP[::7].astype(dtype)])
    results = []
    for isa in FUSED:
        with selected(isa):
            results.append((forward(name, x), backward(name, x, x[::-1].copy())))
    assert all(same_bits(a, b) for result in results for a, b in zip(result, results[0], strict=True))


# --- arrays of any shape and layout -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OFFERED)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2, 3, 5, 7), (1, 1, 1)], ids=str)
def test_function_takes_any_shape(dtype, rng, name, shape):
    x, dy = rng.standard_normal((2, *shape)).astype(dtype)
    flat = forward(name, np.ravel(x))
    y = forward(name, x)
    assert isinstance(y, np.ndarray) and y.shape == shape and y.dtype == x.dtype
    assert same_bits(y.ravel(), flat)
    if OFFERED[name][1]:
        assert same_bits(backward(name, y, dy), backward(name, y.ravel(), np.ravel(dy)).reshape(shape))


LAYOUTS = {
    "Fortran": np.asfortranarray,
    "reversed": lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
    "every second": lambda a: np.repeat(np.repeat(a, 2, 0), 2, 1)[::2, ::2],
    "odd offset": lambda a: np.frombuffer(b"x" + a.tobytes(), a.dtype, offset=1).reshape(a.shape),
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OFFERED)
def test_function_takes_any_layout(dtype, rng, name, layout):
    x, dy = rng.standard_normal((2, 9, 11)).astype(dtype)
    assert same_bits(forward(name, LAYOUTS[layout](x)), forward(name, x))
    if OFFERED[name][1]:
        assert same_bits(backward(name, LAYOUTS[layout](x), dy), backward(name, x, dy))
        assert same_bits(backward(name, x, LAYOUTS[layout](dy)), backward(name, x, dy))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_in_place(isa, dtype, rng, name):
    x, dy = rng.standard_normal((2, 131)).astype(dtype)
    y, dx = forward(name, x), backward(name, x, dy)
    a, b, c = x.copy(), x.copy(), dy.copy()
    assert forward(name, a, a) is a and same_bits(a, y)
    assert backward(name, b, dy, b) is b and same_bits(b, dx)
    assert backward(name, x, c, c) is c and same_bits(c, dx)


# --- softmax ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 67, 131])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_softmax_is_accurate(isa, dtype, rng, columns, scale):
    """s - max is rounded, which e^ turns into |s - max| u, e^ has its ULP (2 u), the sum of positive terms no more than they, and the
    quotient one rounding; a subnormal result is off by a unit of its last place"""
    wide = np.longdouble if dtype == "float64" else np.float64
    s = (scale * rng.standard_normal((37, columns))).astype(dtype)
    S = s.astype(wide)
    distance = S.max(1, keepdims=True) - S
    bound = (distance + (distance * reference.softmax_forward(S)).sum(1, keepdims=True) + 2 * 2 * elementwise_ulp("exp") + 1) * unit_roundoff(dtype)
    exact = reference.softmax_forward(S)
    out = Framed(s.shape, dtype)
    K.softmax(s, out.array)
    assert (np.abs(out.array - exact) <= bound * exact + np.finfo(dtype).smallest_subnormal).all()
    assert out.intact()
    assert np.abs(out.array.astype(wide).sum(1) - 1).max() <= columns * unit_roundoff(dtype)


def test_softmax_of_equal_numbers_is_exact(isa, dtype):
    """Of any size, the largest included"""
    for value in (0.0, 1e-40, -87.0, 3e38, -3e38):
        assert (K.softmax(np.full((3, 8), value, dtype)) == 0.125).all()


def test_softmax_at_infinity_and_nan(isa, dtype):
    """-inf counts for nothing; NaN and +inf spoil exactly their row"""
    n = 2 * tile(isa, dtype).VL + 3
    s = np.zeros((n + 1, n), dtype)
    s[0, 1:] = -np.inf
    assert np.array_equal(K.softmax(s)[0], np.eye(n, dtype=dtype)[0])
    for value in (np.nan, np.inf):
        for j in range(n):
            bad = np.zeros((3, n), dtype)
            bad[1, j] = value
            out = K.softmax(bad)
            assert np.isnan(out[1]).any() and np.isfinite(out[[0, 2]]).all()
    assert np.isnan(K.softmax(np.full((1, n), -np.inf, dtype))).all()


def test_softmax_of_a_row_does_not_depend_on_the_others(isa, dtype, rng):
    for columns in (1, 3, 16, 35, 70):
        s = (5 * rng.standard_normal((113, columns))).astype(dtype)
        together = K.softmax(s)
        assert all(same_bits(K.softmax(placed(s[i : i + 1], 8 * i % 64)), together[i : i + 1]) for i in range(len(s)))
        assert K.softmax(s, s) is s and same_bits(s, together)


def test_softmax_is_the_same_for_every_number_of_threads(isa, dtype, rng):
    """Shares are whole multiples of 16 rows"""
    cases = [(5 * rng.standard_normal((rows, 35))).astype(dtype) for rows in (1, 17, 113)]
    results = for_every_number_of_threads(lambda: [K.softmax(s) for s in cases])
    assert all(same_bits(a, b) for result in results for a, b in zip(result, results[0], strict=True))


def test_softmax_is_the_same_for_every_instruction_set(dtype, rng):
    s = (5 * rng.standard_normal((13, 131))).astype(dtype)
    results = []
    for name in FUSED:
        with selected(name):
            results.append(K.softmax(s))
    assert all(same_bits(result, results[0]) for result in results)


def test_derivative_of_softmax(isa, dtype, rng):
    """y (dy - sum of dy y), through a layer without effect of its own: within the roundings of y, of the sum and of three operations, and the
    same for every number of threads"""
    wide = np.longdouble if dtype == "float64" else np.float64
    for rows, n in [(3, 1), (5, tile(isa, dtype).VL + 1), (65, 37)]:
        x, dy = rng.standard_normal((2, rows, n)).astype(dtype)
        model = fb.Sequential(fb.Linear(n, n, bias=False), fb.Softmax(), dtype=dtype, seed=0)
        model.parameters["0.weight"][:] = np.eye(n)
        results = for_every_number_of_threads(lambda: (model.forward(x), model.backward(dy)))
        assert all(same_bits(a, b) for result in results for a, b in zip(result, results[0], strict=True))
        y, dx = results[0]
        assert same_bits(y, K.softmax(x))
        gauge = y * (np.abs(dy) + (np.abs(dy) * y).sum(1, keepdims=True))
        exact = y.astype(wide) * (dy - (dy.astype(wide) * y).sum(1, keepdims=True))
        assert (np.abs(dx - exact) <= 4 * unit_roundoff(dtype) * gauge).all()


@pytest.mark.parametrize("shape", [(0, 3), (5, 1)])
def test_softmax_of_no_rows_or_one_column(dtype, shape):
    assert np.array_equal(K.softmax(np.full(shape, -7, dtype)), np.ones(shape, dtype))


# --- all float32 numbers: pytest -m slow, minutes per function --------------------------------------------------------------------


@pytest.fixture
def only_when_asked(request):
    if "slow" not in request.config.getoption("-m"):
        pytest.skip("minutes per function; run with -m slow")


@pytest.mark.slow
@pytest.mark.parametrize("name", CURVED)
def test_function_of_every_float32_number(name, only_when_asked, capsys):
    """All 2**32: the largest error in ULP and its argument, NaN, monotony, the same bits on every instruction set with FMA"""
    chunk = 2**22
    record = {isa: (0.0, None) for isa in (FUSED[0], "baseline") if isa in ISAS}
    last = dict.fromkeys(record, -np.inf)
    for first in range(0, 2**32, chunk):
        x = np.arange(first, first + chunk, dtype=np.uint64).astype(np.uint32).view(np.float32)
        x = x[::-1] if first >= 2**31 else x  # ascending from here on, though the chunks of the negative numbers come in descending order
        exact = representable(IN_DOUBLE[name](x.astype(np.float64)), np.float32)
        for at, limit in LIMITS.get(name, {}).items():
            exact = np.where(x == at, limit, exact)
        same = None
        for isa in ISAS:
            with selected(isa):
                y = forward(name, np.ascontiguousarray(x))
            if isa in FUSED:
                same = y if same is None else same
                assert same_bits(y, same), (isa, first)
            if isa not in record:
                continue
            assert np.array_equal(np.isnan(y), np.isnan(x)), (isa, first)
            error, at = worst(name, x, y, exact, np.float32)
            record[isa] = max(record[isa], (error, at), key=lambda pair: pair[0])
            if name not in ("gelu", "silu"):
                up = y[~np.isnan(y)]
                assert (up[1:] >= up[:-1]).all(), (isa, first)
                if up.size:
                    if first < 2**31:
                        assert up[0] >= last[isa]
                        last[isa] = up[-1]
                    else:
                        last[isa] = np.inf if first == 2**31 else last[isa]
                        assert up[-1] <= last[isa]
                        last[isa] = up[0]
    with capsys.disabled():
        print("".join(f"\n{name} on {isa}: at most {error:.3f} ULP, at {at!r}" for isa, (error, at) in record.items()))
    assert all(error <= elementwise_ulp(name) for error, _ in record.values())
