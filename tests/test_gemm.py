"""Products: x wᵀ, δ w and δᵀ x, their epilogues and the sums over a batch.

Whole numbers make the exact answer representable, so most of what is compared here is compared bit for bit: any tile, mask, panel or
block that takes a wrong element shows. What whole numbers cannot show, the order of roundings, is held against chains of the C
library's fma.
"""
import functools
import tracemalloc

import numpy as np
import pytest
import reference
from hypothesis import example, given
from hypothesis import strategies as st
from kernel_cases import (CHUNK, FUSED, ISAS, THREADS, Framed, chunk_of, for_every_number_of_threads, fused_multiply_add, isa, same_bits, selected,  # noqa: F401
                          team, tile, whole_numbers)
from tolerance import gauge_bound

import fastbp as fb
from fastbp import _core
from fastbp import kernels as K

ALPHA = {"leaky_relu": 0.01, "elu": 1.0}  # of linear_forward
TALLEST, DEEPEST, WIDEST = 1024, 3072, 2112  # rows, depth and columns of the operands that the cases are cut from; the first two whole pages

# --- operands, cut from large ones: rows are not tight, and one product holds the answers of all its parts ------------


@functools.cache
def stored(dtype, whole=True):
    """a (M, K), b (K, N) and bias (N), each matrix with its transposed copy"""
    rng = np.random.default_rng(5)
    draw = functools.partial(whole_numbers, rng) if whole else lambda *shape: rng.standard_normal(shape)
    a, b, bias = (draw(*shape).astype(dtype) for shape in [(TALLEST, DEEPEST), (DEEPEST, WIDEST), (WIDEST,)])
    return a, a.T.copy(), b, b.T.copy(), bias


def cut(operand, rows, columns, tight):
    """A corner, its rows as far apart as in the whole (the kernels copy rows that are whole pages apart) or close together"""
    corner = operand[:rows, :columns]
    return np.ascontiguousarray(corner) if tight else corner


def forward(dtype, m, n, k, out=None, b=None, activation=None, whole=True):
    """x wᵀ: rows of x and of w are contiguous"""
    a, _, _, w, _ = stored(dtype, whole)
    return K.linear_forward(cut(a, m, k, n % 2), w[:n, :k], b, activation, out)


def input_gradient(dtype, m, n, k, out=None, whole=True):
    """δ w"""
    a, _, b, _, _ = stored(dtype, whole)
    return K.matmul(cut(a, m, k, n % 2), b[:k, :n], out)


def weight_gradient(dtype, m, n, k, out=None, whole=True):
    """δᵀ x, the sum over a batch of k rows"""
    _, a, b, _, _ = stored(dtype, whole)
    return K.weight_gradient(b[:k, :n], cut(a, k, m, n % 2), out)


def both_transposed(dtype, m, n, k, out=None, whole=True):
    """aᵀ bᵀ, both transposed views"""
    _, a, _, b, _ = stored(dtype, whole)
    return K.matmul(cut(a, k, m, n % 2).T, b[:n, :k].T, out)


ORIENTATIONS = [forward, input_gradient, weight_gradient, both_transposed]
every_orientation = pytest.mark.parametrize("product", ORIENTATIONS, ids=lambda f: f.__name__)
one_chain = pytest.mark.parametrize("product", [forward, input_gradient, both_transposed], ids=lambda f: f.__name__)


@functools.cache
def exact(m, n, k):
    """The product of whole numbers, in float64"""
    a, _, b, _, _ = stored("float64")
    return a[:m, :k] @ b[:k, :n]


def seams(t):
    """(m, n, k) around every boundary: tile, packing, cache block, depth of a panel; and primes"""
    return [
        (1, 1, 1000), (1, t.NR, 31), (1, t.NC + 1, t.KC + 1), (t.MR, t.NR, 2 * t.KC + 1), (t.MR + 1, t.NC - 1, 33), (7, t.NC, 2),
        (2 * t.MR, 4 * t.NR, 32), (2 * t.MR + 1, 4 * t.NR + 1, 31), (3 * t.MR, t.NR + 1, 300), (3 * t.MR + 1, 2 * t.NR + 1, 770),
        (3 * t.MR - 1, 4 * t.NR + 1, 32), (3 * t.MR - 1, 4 * t.NR + 2, 32), (3 * t.MR + 1, 5 * t.NR - 1, t.KC - 1), (t.MC - 1, t.NR + t.VL + 1, t.KC),
        (t.MC, 4 * t.NR, t.KC), (t.MC + 1, 4 * t.NR + t.VL + 1, t.KC + 1), (t.MC + 1, 4 * t.NR + t.VL + 2, t.KC + 1), (2 * t.MC + 1, t.VL - 1, 33),
        (t.MC + 1, t.NC + 1, 32), (2 * t.MR + 1, 47 * t.NR, 33), (2 * t.MR + 1, 47 * t.NR + 1, 33),
        (5 * t.MR + 1, 7 * t.NR + 1, 130), (5 * t.MR + 1, 7 * t.NR, 130), (400, 4 * t.NR + 2, 260), (101, 103, 107), (257, 1, 257),
        (17, 3 * t.VL, 45), (50, 6 * t.VL, 33), (203, 6 * t.VL - 1, 600), (400, 15 * t.VL + 1, 300), (401, 16 * t.VL + 1, 300), (57, t.NC + 1, 1100),  # broad tiles
        (1000, t.NR, 1100), (1000, 2 * t.NR + 1, 1100), (1024, t.NR + 1, 1100),  # columns of A beyond the second cache
    ]


# --- whole numbers: threshold 0 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("product", [forward, input_gradient, weight_gradient], ids=lambda f: f.__name__)
def test_product_of_whole_numbers_is_exact_for_every_tile(isa, dtype, product):
    """All m up to 2 MR + 1 and n up to 2 NR + 1; what `out` held is not read, what lies around it is not written"""
    t = tile(isa, dtype)
    for k in (0, 1, 9, 33, 134):
        for m in range(2 * t.MR + 2):
            for n in range(2 * t.NR + 2):
                out = Framed((m, n), dtype)
                assert product(dtype, m, n, k, out.array) is out.array
                assert np.array_equal(out.array, exact(2 * t.MR + 1, 2 * t.NR + 1, k)[:m, :n]), (m, n, k)
                assert out.intact(), (m, n, k)


@pytest.mark.parametrize("threads", THREADS)
@every_orientation
def test_product_of_whole_numbers_is_exact_at_seams(isa, dtype, product, threads):
    shapes = seams(tile(isa, dtype))
    with team(threads):
        for m, n, k in shapes if threads == 1 else shapes[threads % 3 :: 3]:  # 2, 3 and 7 threads share them out
            out = Framed((m, n), dtype)
            product(dtype, m, n, k, out.array)
            assert np.array_equal(out.array, exact(m, n, k)), (m, n, k)
            assert out.intact(), (m, n, k)


def test_whole_numbers_can_fail():
    """The test above proves something: hardly a result is 0, and neighbours differ"""
    product = exact(101, 103, 107)
    assert np.count_nonzero(product) > 0.98 * product.size
    assert np.count_nonzero(np.diff(product, axis=0)) > 0.98 * (product.size - 103)
    assert np.count_nonzero(np.diff(product, axis=1)) > 0.98 * (product.size - 101)


@pytest.mark.parametrize("activation", [None, "identity", "relu"])
@pytest.mark.parametrize("biased", [False, True])
def test_epilogue_on_whole_numbers_is_exact(isa, dtype, biased, activation):
    """Bias and ReLU once, after the last of the terms, in every column; no terms at all leave f(bias)"""
    t = tile(isa, dtype)
    bias = stored(dtype)[4]
    small = [(m, n, k) for m in (0, 1, t.MR - 1, t.MR, t.MR + 1) for n in (*range(t.VL + 2), t.NR - 1, t.NR, t.NR + 1, t.NR + t.VL + 1) for k in (0, 5)]
    for m, n, k in small + seams(t):
        expected = exact(m, n, k) + (bias[:n] if biased else 0)
        expected = np.maximum(expected, 0) if activation == "relu" else expected
        out = Framed((m, n), dtype)
        forward(dtype, m, n, k, out.array, bias[:n] if biased else None, activation)
        assert np.array_equal(out.array, expected), (m, n, k)
        assert out.intact(), (m, n, k)


@pytest.mark.parametrize("rows", [0, 1, 2, 255, 256, 257, 511, 512, 513, 1000])
def test_sums_over_a_batch_of_whole_numbers_are_exact(isa, dtype, rows):
    t = tile(isa, dtype)
    a, _, b, _, _ = stored(dtype)
    for I, O in [(1, 1), (t.NR + 1, t.MR + 1), (5 * t.NR + 3, 3 * t.MR + 2), (3, 67)]:
        x, delta, w = a[:rows, :I], b[:rows, :O], a[-O:, -I:]
        gradient, sums = Framed((O, I), dtype), Framed((O,), dtype)
        assert K.weight_gradient(x, delta, gradient.array) is gradient.array
        assert K.bias_gradient(delta, sums.array) is sums.array
        assert np.array_equal(gradient.array, delta.T.astype(np.float64) @ x) and gradient.intact()
        assert np.array_equal(sums.array, delta.astype(np.float64).sum(0)) and sums.intact()
        expected = reference.linear_backward(*(array.astype(np.float64) for array in (x, w, delta)))
        assert all(map(np.array_equal, K.linear_backward(x, w, delta), expected))


def test_column_sums_are_exact_for_every_width(isa, dtype):
    """Four vectors at once, then one, then a part of one"""
    delta = stored(dtype)[0]
    for n in range(6 * tile(isa, dtype).VL + 2):
        out = Framed((n,), dtype)
        K.bias_gradient(np.ascontiguousarray(delta[:13, :n]), out.array)
        assert np.array_equal(out.array, delta[:13, :n].astype(np.float64).sum(0)), n
        assert out.intact(), n


# --- rounding: which chain of operations an element is ----------------------------------------------------------------


@functools.cache
def chains(dtype, fused, rows, columns, terms):
    """For every chunk of terms: their sum of every element, one multiply-add after the other from 0; and the
    sum over all terms alike"""
    a, _, b, _, _ = stored(dtype, whole=False)
    fma = fused_multiply_add(dtype) if fused else lambda x, y, z: x * y + z
    parts, total = [], np.zeros((rows, columns), dtype)
    for p in range(terms):
        if p % chunk_of(terms) == 0:
            parts.append(np.zeros((rows, columns), dtype))
        parts[-1] = fma(a[:rows, p, None], b[None, p, :columns], parts[-1])
        total = fma(a[:rows, p, None], b[None, p, :columns], total)
    return parts, total


CHAINS = (7, 9, 1300)


@one_chain
@pytest.mark.parametrize("k", [1, 511, 512, 513, 1025, 1300])
def test_product_is_one_chain_in_ascending_order(isa, dtype, product, k):
    """Also across the blocks of terms that are packed at a time"""
    _, expected = chains(dtype, isa != "baseline", *CHAINS[:2], k)
    assert same_bits(product(dtype, *CHAINS[:2], k, whole=False), expected)


@every_orientation
def test_product_of_few_terms_is_the_same_chain(isa, dtype, product):
    """Up to more terms than are ever kept in registers; a few rows and many, ragged columns"""
    t = tile(isa, dtype)
    for k in range(1, 23):
        _, expected = chains(dtype, isa != "baseline", 37, t.NR + t.VL + 1, k)
        for m, n in [(4, t.VL), (5, t.VL // 2 + 1), (7, t.VL + 1), (8, t.NR), (37, t.NR + t.VL + 1)]:
            out = Framed((m, n), dtype)
            product(dtype, m, n, k, out.array, whole=False)
            assert same_bits(out.array, expected[:m, :n]), (m, n, k)
            assert out.intact(), (m, n, k)


def test_bias_is_added_last(isa, dtype):
    bias = stored(dtype, whole=False)[4][: CHAINS[1]]
    _, product = chains(dtype, isa != "baseline", *CHAINS)
    assert same_bits(forward(dtype, *CHAINS, b=bias, whole=False), product + bias)


@pytest.mark.parametrize("rows", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 7])
def test_weight_gradient_is_summed_in_chunks(isa, dtype, rows):
    parts, _ = chains(dtype, isa != "baseline", *CHAINS[:2], rows)
    assert same_bits(weight_gradient(dtype, *CHAINS[:2], rows, whole=False), functools.reduce(np.add, parts))


@pytest.mark.parametrize("rows", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK])
def test_bias_gradient_is_summed_in_chunks(isa, dtype, rows):
    delta = np.ascontiguousarray(stored(dtype, whole=False)[0][:rows, :131])
    chunk = chunk_of(rows)
    chunks = [functools.reduce(np.add, delta[i : i + chunk], np.zeros(131, dtype)) for i in range(0, rows, chunk)]
    assert same_bits(K.bias_gradient(delta), functools.reduce(np.add, chunks))


# --- real numbers: within the bound ---------------------------------------------------------------------------------------


@every_orientation
def test_product_of_real_numbers_is_within_the_gauge_bound(isa, dtype, product):
    wide = np.longdouble if dtype == "float64" else np.float64
    a, _, b, _, _ = (array.astype(wide) for array in stored(dtype, whole=False))
    for m, n, k in [(13, 35, 1), (25, 33, 64), (37, 67, 300), (3, 129, 1000)]:
        error = np.abs(product(dtype, m, n, k, whole=False) - a[:m, :k] @ b[:k, :n])
        assert (error <= gauge_bound(dtype, k) * (np.abs(a[:m, :k]) @ np.abs(b[:k, :n]))).all(), (m, n, k)


def test_linear_forward_and_backward_are_within_the_gauge_bound(isa, dtype):
    """Against reference.py in more than the working precision"""
    wide = np.longdouble if dtype == "float64" else np.float64
    a, _, b, _, bias = stored(dtype, whole=False)
    for B, I, O in [(1, 1, 1), (37, 41, 19), (300, 23, 35)]:
        x, w, c, dy = a[:B, :I], b[:O, :I], bias[:O], b[O : O + B, I : I + O]
        X, W, C, DY = (array.astype(wide) for array in (x, w, c, dy))
        gauges = [reference.linear_forward(*map(np.abs, (X, W, C))), *reference.linear_backward(*map(np.abs, (X, W, DY)))]
        exacts = [reference.linear_forward(X, W, C), *reference.linear_backward(X, W, DY)]
        for actual, expected, gauge, k in zip([K.linear_forward(x, w, c), *K.linear_backward(x, w, dy)], exacts, gauges, (I, O, B, B), strict=True):
            assert (np.abs(actual - expected) <= gauge_bound(dtype, k) * gauge).all()


@pytest.mark.parametrize("act", ["identity", "relu", "tanh"])
@pytest.mark.parametrize("columns", [500, 1000, 1030, 2100])
def test_few_rows_over_a_large_matrix_are_those_of_a_tall_product(isa, dtype, rng, act, columns):
    """Two blocks in depth, ragged columns, rows of the matrix less and more than a page apart; the matrix itself and views of a wider one, whose rows
    are whole cache lines apart and begin anywhere in them; and transposed"""
    line = 64 // np.dtype(dtype).itemsize
    a, wider, bias = rng.normal(size=(26, 1100)), rng.normal(size=(1100, (columns + 2 * line - 1) // line * line)), rng.normal(size=columns)
    a, wider, bias = (array.astype(dtype) for array in (a, wider, bias))
    by_columns = np.asfortranarray(wider[:, :columns])
    for b in (wider[:, 1 : 1 + columns].copy(), *(wider[:, at : at + columns] for at in (0, 1, line // 2, line - 1)), by_columns):
        tall = _core.matmul(a, b, np.empty((26, columns), dtype), bias, _core.ACTIVATIONS[act])
        for m in (*range(1, 18), 24, 25):
            np.testing.assert_array_equal(_core.matmul(a[:m], b, np.empty((m, columns), dtype), bias, _core.ACTIVATIONS[act]), tall[:m])


@pytest.mark.parametrize("apart", [1024, 1280, 1030], ids=["rows in one set of a cache", "in a few sets", "in different ones"])
def test_few_rows_over_a_transposed_matrix_are_exact_for_every_number_of_columns(isa, dtype, apart, rng):
    """Rows of the matrix side by side, as many as registers hold, and all of those that are left; and a few columns, which are such products turned"""
    a, w, bias = (whole_numbers(rng, *shape).astype(dtype) for shape in ((25, apart), (75, apart), (75,)))
    for k in (1, 4, 19, 32, 301):
        product = a[:, :k].astype(np.float64) @ w[:, :k].T.astype(np.float64)
        for m in (1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 23, 24, 25):
            for n in (*range(1, 37), 64, 65, 73, 74):
                out = Framed((m, n), dtype)
                K.linear_forward(a[:m, :k], w[:n, :k], bias[:n], "relu", out.array)
                assert np.array_equal(out.array, np.maximum(product[:m, :n] + bias[:n], 0)), (m, n, k)
                assert out.intact(), (m, n, k)
        for m in range(1, 75):
            for n in (1, 2, 4, 6, 7, 9, 12, 13):
                out = Framed((m, n), dtype)
                K.linear_forward(w[:m, :k], a[:n, :k], bias[:n], None, out.array)
                assert np.array_equal(out.array, product[:n, :m].T + bias[:n]), (m, n, k)
                assert out.intact(), (m, n, k)


@pytest.mark.parametrize("act", ["identity", "relu", "tanh"])
def test_product_is_the_same_wherever_rows_of_its_operands_begin(isa, dtype, rng, act):
    """Rows of B are whole cache lines apart and begin anywhere in them: columns up to the next line are made first; A in copies and where it lies, in
    rows and in columns; one block of columns and two"""
    t, line = tile(isa, dtype), 64 // np.dtype(dtype).itemsize
    for n in (8 * t.NR, 8 * t.NR + line + 1, t.NC + t.NR + 1):
        wide, bias = rng.normal(size=(130, (n + 2 * line) // line * line)).astype(dtype), rng.normal(size=n).astype(dtype)
        for m, k in [(7, 130), (3 * t.MR + 1, 31), (3 * t.MR, 130), (97, 64)]:
            a = rng.normal(size=(m, k)).astype(dtype)
            for at in (0, 1, line // 2, line - 1):
                b = wide[:k, at : at + n]
                alike = np.pad(b, ((0, 0), (0, line - n % line + 1)))[:, :n]   # its rows begin everywhere in a line
                expected = _core.matmul(a, alike, np.empty((m, n), dtype), bias, _core.ACTIVATIONS[act])
                for operand in (a, np.asfortranarray(a)):
                    out = Framed((m, n), dtype)
                    _core.matmul(operand, b, out.array, bias, _core.ACTIVATIONS[act])
                    np.testing.assert_array_equal(out.array, expected, (m, n, k, at))
                    assert out.intact(), (m, n, k, at)


@pytest.mark.parametrize("act", ["identity", "relu", "tanh"])
def test_product_with_a_transposed_matrix_is_that_with_its_copy_by_rows(isa, dtype, rng, act):
    """Of fewer rows than the matrix has columns Cᵀ is made, where that is less to pack, and turned: whole and ragged tiles, several blocks of columns"""
    t = tile(isa, dtype)
    for m in (7, 8, t.NR - 1, t.NR, t.NR + 1, 2 * t.NR, 127, 128, 129):
        for n in (160, 161, 7 * t.VL - 1, 2047):
            for k in (32, 163):
                a, b, bias = (rng.normal(size=shape).astype(dtype) for shape in ((m, k), (k, n), n))
                out = Framed((m, n), dtype)
                _core.matmul(a, np.asfortranarray(b), out.array, bias, _core.ACTIVATIONS[act])
                np.testing.assert_array_equal(out.array, _core.matmul(a, b, np.empty((m, n), dtype), bias, _core.ACTIVATIONS[act]), (m, n, k))
                assert out.intact(), (m, n, k)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("act", ["identity", "relu", "tanh"])
def test_last_columns_of_a_product_with_a_transposed_first_matrix_are_those_with_its_copy_by_rows(isa, dtype, rng, act, threads):
    """The few that fill a small part of a vector are made as rows of Cᵀ and turned"""
    t = tile(isa, dtype)
    with team(threads):
        for m in (5 * t.VL, 6 * t.VL + 1, 127, 128, 129, 301):
            for n in (t.VL + 1, 2 * t.VL + 2, 5 * t.VL + 3, 9 * t.VL + 4):
                for k in (31, 32, 77):
                    a, b, bias = (rng.normal(size=shape).astype(dtype) for shape in ((m, k), (k, n), n))
                    out = Framed((m, n), dtype)
                    _core.matmul(np.asfortranarray(a), b, out.array, bias, _core.ACTIVATIONS[act])
                    np.testing.assert_array_equal(out.array, _core.matmul(a, b, np.empty((m, n), dtype), bias, _core.ACTIVATIONS[act]), (m, n, k))
                    assert out.intact(), (m, n, k)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("orders", ["CC", "CF", "FC", "FF"])
def test_a_few_columns_are_exact_for_every_number_of_rows(isa, dtype, rng, orders, threads):
    """All of them are made as rows of Cᵀ, by patches or by tiles, and turned; alone in a column that is tight, they stay. Blocks of the most rows that Cᵀ has room for, too"""
    room = 48 << 10
    wide_a, wide_b, bias = (whole_numbers(rng, *shape).astype(dtype) for shape in ((room // 2 + 3, 77), (77, 15), (15,)))
    with team(threads):
        for n in range(1, 16):
            for m, k in [*((m, k) for m in (7, 13, 24, 61, 128, 129, 301) for k in (1, 31, 32, 77)), *([(room // n + 1, 33)] if n > 1 else [])]:
                a, b = wide_a[:m, :k], wide_b[:k, :n]
                expected = np.maximum(a.astype(np.float64) @ b.astype(np.float64) + bias[:n], 0)
                out = Framed((m, n), dtype)
                _core.matmul(a.copy(orders[0]), b.copy(orders[1]), out.array, bias[:n], _core.ACTIVATIONS["relu"])
                assert np.array_equal(out.array, expected), (m, n, k)
                assert out.intact(), (m, n, k)


@pytest.mark.parametrize("act", ["ReLU", "Tanh"])
def test_few_rows_of_an_input_gradient_are_those_of_a_tall_one(isa, build, dtype, rng, act):
    model = build([("Linear", 3, 1030), (act,), ("Linear", 1030, 1100)], dtype=dtype)
    x, dy = rng.normal(size=(17, 3)).astype(dtype), rng.normal(size=(26, 1100)).astype(dtype)

    def gradient(rows):
        model.forward(x[rows])
        return model.backward(dy[rows])

    tall = gradient(slice(17))
    for m in range(1, 8):
        np.testing.assert_array_equal(gradient(slice(m)), tall[:m])


# --- the epilogue and the layers are the same arithmetic as the parts ------------------------------------------------------


@pytest.mark.parametrize("activation", sorted(_core.ACTIVATIONS))
def test_activation_of_a_product_equals_product_then_activation(isa, dtype, activation):
    t = tile(isa, dtype)
    for m, n, k in [(1, 1, 0), (t.MR + 1, t.VL - 1, 3), (5, t.NR + 1, 300), (3 * t.MR + 1, 5 * t.NR - 1, 257)]:
        bias = stored(dtype, whole=False)[4][:n]
        product = forward(dtype, m, n, k, b=bias, whole=False)
        expected = _core.map_forward(_core.ACTIVATIONS[activation], product, np.empty_like(product), ALPHA.get(activation, 0))
        out = Framed((m, n), dtype)
        assert same_bits(forward(dtype, m, n, k, out.array, bias, activation, whole=False), expected)
        assert out.intact()


LAYERS = {"identity": "Identity", "relu": "ReLU", "leaky_relu": "LeakyReLU", "sigmoid": "Sigmoid", "tanh": "Tanh", "elu": "ELU",
          "softplus": "Softplus", "gelu": "GELU", "silu": "SiLU"}


@pytest.mark.parametrize("threads", [1, 3])
def test_layers_forward_and_backward_equal_the_kernels(isa, dtype, rng, threads):
    """What the compiler fuses (bias, activation, its derivative on the tile of the input gradient) has the bits of the plain functions"""
    with team(threads):
        for activation, layer in LAYERS.items():
            for B, I, H, O in [(3, 5, 7, 2), (300, 19, 67, 37)]:
                model = fb.Sequential(fb.Linear(I, H), getattr(fb, layer)(), fb.Linear(H, O), dtype=dtype, seed=0)
                w1, b1, w2, b2 = (model.parameters[name] for name in ("0.weight", "0.bias", "2.weight", "2.bias"))
                x, dy = rng.standard_normal((B, I)).astype(dtype), rng.standard_normal((B, O)).astype(dtype)
                act, alpha = _core.ACTIVATIONS[activation], ALPHA.get(activation, 0)
                z = K.linear_forward(x, w1, b1)
                h = _core.map_forward(act, z, np.empty_like(z), alpha)
                dh, dw2, db2 = K.linear_backward(h, w2, dy)
                dz = _core.map_backward(act, z if activation in ("softplus", "gelu", "silu") else h, dh, np.empty_like(dh), alpha)
                expected = [K.linear_forward(h, w2, b2), *K.linear_backward(x, w1, dz), dw2, db2]
                actual = [model.forward(x), model.backward(dy), *(model.gradients[name] for name in ("0.weight", "0.bias", "2.weight", "2.bias"))]
                assert all(same_bits(a, b) for a, b in zip(actual, expected, strict=True)), (activation, B)


# --- an element depends on its row and its column and on nothing else ------------------------------------------------------


def shapes(t):
    """Nothing packed; all packed, with tails on every side and several blocks of depth"""
    return [(t.MR + 2, t.NR - 1, 9), (3 * t.MR + 2, 4 * t.NR + t.VL + 3, 300)]


@every_orientation
def test_product_is_the_same_for_every_number_of_threads(isa, dtype, product):
    cases = [*shapes(tile(isa, dtype)), (101, 103, 107), (2, 515, 300), (515, 2, 300)]
    results = for_every_number_of_threads(lambda: [product(dtype, *shape, whole=False) for shape in cases])
    assert all(same_bits(a, b) for result in results for a, b in zip(result, results[0], strict=True))


@every_orientation
def test_product_is_the_same_for_every_instruction_set(dtype, product):
    for shape in [(37, 131, 300), (5, 7, 3), (193, 67, 257)]:
        results = []
        for name in FUSED:
            with selected(name):
                results.append(product(dtype, *shape, whole=False))
        assert all(same_bits(result, results[0]) for result in results)


def test_sums_are_the_same_for_every_instruction_set_and_number_of_threads(dtype):
    delta = np.ascontiguousarray(stored(dtype, whole=False)[0][:1000, :600])
    results = []
    for name in ISAS:  # baseline too: there is nothing to fuse
        with selected(name):
            results += for_every_number_of_threads(lambda: K.bias_gradient(delta))
    assert all(same_bits(result, results[0]) for result in results)


def test_row_of_a_product_equals_the_product_of_the_row_alone(isa, dtype):
    for m, n, k in shapes(tile(isa, dtype)):
        a, a_t, b, b_t, bias = stored(dtype, whole=False)
        for x, w in [(a[:m, :k], b_t[:n, :k]), (a_t[:k, :m].T, b[:k, :n].T)]:
            for activation in (None, "tanh"):
                product = K.linear_forward(x, w, bias[:n], activation)
                assert all(same_bits(K.linear_forward(x[i : i + 1], w, bias[:n], activation), product[i : i + 1]) for i in range(m))


def test_column_of_a_product_equals_the_product_of_the_column_alone(isa, dtype):
    for m, n, k in shapes(tile(isa, dtype)):
        a, a_t, b, b_t, _ = stored(dtype, whole=False)
        for x, w in [(a[:m, :k], b_t[:n, :k].T), (a_t[:k, :m].T, b[:k, :n])]:
            product = K.matmul(x, w)
            assert all(same_bits(K.matmul(x, w[:, j : j + 1]), product[:, j : j + 1]) for j in range(n))


@every_orientation
def test_permuted_rows_and_columns_give_the_permuted_product(isa, dtype, rng, product):
    m, n, k = shapes(tile(isa, dtype))[1]
    a, _, b, _, _ = stored(dtype, whole=False)
    rows, columns = rng.permutation(m), rng.permutation(n)
    x, w = a[:m, :k][rows], b[:k, :n][:, columns]
    permuted = {forward: lambda: K.linear_forward(x, w.T), input_gradient: lambda: K.matmul(x, w), weight_gradient: lambda: K.weight_gradient(w, x.T),
                both_transposed: lambda: K.matmul(x.T.copy().T, w.T.copy().T)}[product]()
    assert same_bits(permuted, product(dtype, m, n, k, whole=False)[rows][:, columns])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_bad_number_contaminates_exactly_its_row_or_column(isa, dtype, value):
    for m, n, k in shapes(tile(isa, dtype)):
        a, _, b, _, _ = stored(dtype)
        a, b, bias = a[:m, :k].copy(), b[:k, :n].copy(), np.ones(n, dtype)
        for i in range(m):
            for p in {i % k, k - 1}:
                good, a[i, p] = a[i, p], value
                for product in (K.linear_forward(a, b.T, bias, "relu" if np.isnan(value) else None), K.matmul(a, b), K.weight_gradient(b, a.T)):
                    assert np.array_equal(~np.isfinite(product).all(1), np.arange(m) == i), (i, p)
                    assert not np.isfinite(product[i]).any(), (i, p)
                a[i, p] = good
        for j in range(n):
            p = j % k
            good, b[p, j], bias[j] = b[p, j], value, -value
            for product in (K.linear_forward(a, b.T), K.matmul(a, b), K.weight_gradient(b, a.T), K.linear_forward(a, np.ones_like(b.T), bias)):
                assert np.array_equal(~np.isfinite(product).all(0), np.arange(n) == j), (j, p)
                assert not np.isfinite(product[:, j]).any(), (j, p)
            b[p, j], bias[j] = good, 1


def test_column_sums_of_one_bad_number_are_bad_in_exactly_its_column(isa, dtype):
    n = 5 * tile(isa, dtype).VL + 3
    for j in range(n):
        delta = np.ones((300, n), dtype)
        delta[(j * 37) % 300, j] = np.nan
        assert np.array_equal(np.isnan(K.bias_gradient(delta)), np.arange(n) == j)


# --- layouts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("a, b", [("C", "C"), ("C", "F"), ("F", "C"), ("F", "F"), ("cut", "C"), ("C", "cut"), ("broadcast", "C"), ("C", "broadcast")])
def test_transposed_and_cut_operands_are_read_without_a_copy(isa, dtype, a, b):
    size = 128
    big = np.ones((size, 2 * size), dtype)
    layouts = {"C": big[:, :size].copy(), "F": big[:, :size].copy().T, "cut": big[:, :size], "broadcast": np.broadcast_to(big[:1, :size], (size, size))}
    out = np.empty((size, size), dtype)
    tracemalloc.start()
    try:
        K.matmul(layouts[a], layouts[b], out)
        K.weight_gradient(layouts[b], layouts[a].T, out)
        K.linear_forward(layouts[a], layouts[b].T, out=out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < out.nbytes / 4
    assert (out == size).all()


NATIVE = ("float32", "float64")
LAYOUTS = {
    "C": lambda a: a,
    "Fortran": np.asfortranarray,
    "rows reversed": lambda a: a[::-1].copy()[::-1],
    "columns reversed": lambda a: a[:, ::-1].copy()[:, ::-1],
    "all reversed, transposed": lambda a: a.T[::-1, ::-1].copy()[::-1, ::-1].T,
    "every second row": lambda a: np.repeat(a, 2, 0)[::2],
    "every third column": lambda a: np.repeat(a, 3, 1)[:, ::3],
    "cut": lambda a: np.pad(a, ((1, 2), (3, 1)), constant_values=9)[1:-2, 3:-1],
    "one row, broadcast": lambda a: np.broadcast_to(a[:1], a.shape) if len(a) else a,
    "one column, broadcast": lambda a: np.broadcast_to(a[:, :1], a.shape) if a.shape[1] else a,
    "one number, broadcast": lambda a: np.broadcast_to(a[:1, :1], a.shape) if a.size else a,
    "windows that overlap": lambda a: np.lib.stride_tricks.sliding_window_view(np.resize(a, a.shape[0] + a.shape[1] - 1), a.shape[1]) if a.size else a,
    "odd stride": lambda a: odd_stride(a),
    "not aligned": lambda a: misaligned(a),
    "read-only": lambda a: frozen(a.copy()),
    "swapped bytes": lambda a: a.astype(a.dtype.newbyteorder("S")),
}


def odd_stride(a):
    """Rows and columns a whole number and one byte of elements apart"""
    record = np.zeros(a.shape, [("pad", "u1"), ("value", a.dtype)])
    record["value"] = a
    return record["value"]


def misaligned(a):
    view = np.empty(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def frozen(a):
    a.flags.writeable = False
    return a


SIZES = st.one_of(st.integers(0, 40), st.sampled_from([1, 1, 2, 65, 131]))
DTYPES = st.one_of(st.sampled_from(NATIVE), st.sampled_from([*NATIVE, "float16", "int32", "complex64", "object"]))


@st.composite
def operands(draw):
    """x (B, I), w (O, I) and a bias, in any layout and of any type; sometimes of sizes that do not fit"""
    B, I, O = draw(SIZES), draw(SIZES), draw(SIZES)
    first = draw(DTYPES)
    types = first, draw(st.sampled_from([first] * 9 + ["float64"]))
    shapes = (B, I), (O, draw(st.sampled_from([I] * 19 + [I + 1])))
    layouts = draw(st.sampled_from(sorted(LAYOUTS))), draw(st.sampled_from(sorted(LAYOUTS)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x, w = (LAYOUTS[layout](rng.standard_normal(shape).astype(t)) for layout, shape, t in zip(layouts, shapes, types, strict=True))
    bias = draw(st.sampled_from([None, rng.standard_normal(O).astype(first), rng.standard_normal(2 * O).astype(first)[::-2]]))
    return x, w, bias, draw(st.sampled_from(THREADS))


@given(operands())
@example((np.zeros((0, 3), "f4"), np.zeros((4, 3), "f4"), None, 2))
@example((np.ones((3, 0), "f8"), np.ones((4, 0), "f8"), np.arange(4.0), 2))
@example((np.ones((1, 3), "f4")[::-1], np.ones((4, 3), "f4"), None, 2))
@example((np.ones((2, 1), "f4"), np.ones((4, 1), "f4")[:, ::-1], None, 2))
def test_any_operands_give_the_reference_or_an_error(case):
    """float32 and float64 of the machine's byte order in any layout are computed, all else is refused"""
    x, w, bias, threads = case
    good = x.dtype == w.dtype and x.dtype.name in NATIVE and x.dtype.isnative and x.shape[1] == w.shape[1]
    results = []
    for name in ISAS:
        with selected(name), team(threads):
            if good:
                results += [K.linear_forward(x, w), K.linear_forward(x, w, bias), K.matmul(x, w.T), K.weight_gradient(w.T, x.T)]
                continue
            for call in (lambda: K.linear_forward(x, w, bias), lambda: K.matmul(x, w.T), lambda: K.weight_gradient(w.T, x.T)):
                with pytest.raises((ValueError, TypeError)):
                    call()
    if good:
        wide = np.longdouble if x.dtype == np.float64 else np.float64
        X, W, b = x.astype(wide), w.astype(wide), np.zeros(len(w)) if bias is None else bias.astype(wide)
        product, gauge, bound = X @ W.T, np.abs(X) @ np.abs(W.T), gauge_bound(x.dtype, x.shape[1])
        for i, result in enumerate(results):
            biased = i % 4 == 1
            assert result.dtype == x.dtype
            assert (np.abs(result - (product + b * biased)) <= bound * (gauge + np.abs(b) * biased)).all()
