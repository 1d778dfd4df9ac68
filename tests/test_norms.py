"""LayerNorm, BatchNorm1d and Embedding: against reference.py, and what is special about them.

tests/peers/test_torch_layers.py compares them with PyTorch's over whole trainings.
"""
import copy
import pickle

import numpy as np
import pytest
import reference
from kernel_cases import CHUNK, FUSED, for_every_number_of_threads, isa, same_bits, selected, tile  # noqa: F401
from tolerance import CLOSED_FORM, standardised, trajectory

import fastbp as fb

SHAPES = [(2, 1), (3, 2), (7, 15), (5, 16), (6, 17), (33, 63), (64, 64), (40, 65), (CHUNK - 1, 5), (CHUNK + 1, 3), (17, 200)]


def draw(rows, width, dtype, seed=0):
    rng = np.random.default_rng([seed, rows, width])
    x = rng.normal(size=(rows, width))
    x[0], x[1] = 1, -1   # keep the variance of small ones away from 0
    x[:, :1] = np.linspace(-2, 2, rows)[:, None]
    return x.astype(dtype), rng.normal(size=(rows, width)).astype(dtype)


@pytest.mark.parametrize("rows, width", SHAPES)
@pytest.mark.parametrize("kind, axis", [("LayerNorm", 1), ("BatchNorm1d", 0)])
def test_norm_follows_the_reference(kind, axis, rows, width, dtype, isa):
    if kind == "LayerNorm" and width == 1:   # every row is its own mean: 0
        pytest.skip("tested in test_a_single_feature_is_its_own_mean")
    model = fb.Sequential(getattr(fb, kind)(width), dtype=dtype)
    x, dy = draw(rows, width, dtype)
    w, b = model.parameters["0.weight"], model.parameters["0.bias"]
    w[...], b[...] = np.linspace(0.5, 1.5, width), np.linspace(-1, 1, width)
    exact_x, exact_dy, exact_w, exact_b = (np.float64(a) for a in (x, dy, w, b))
    y = reference.standardise_forward(exact_x, axis)
    spread = 1 / np.sqrt(exact_x.var(axis=axis).min() + 1e-5)
    allowed = standardised(dtype, x.shape[axis]) * max(1, spread) ** 2
    np.testing.assert_allclose(model.forward(x), y * exact_w + exact_b, rtol=0, atol=allowed)
    dx = model.backward(dy)
    np.testing.assert_allclose(dx, reference.standardise_backward(exact_x, exact_dy * exact_w, axis), rtol=0, atol=allowed * max(1, spread))
    np.testing.assert_allclose(model.gradients["0.weight"], (exact_dy * y).sum(axis=0), rtol=0, atol=allowed * rows)
    np.testing.assert_allclose(model.gradients["0.bias"], exact_dy.sum(axis=0), rtol=0, atol=allowed * rows)
    if axis == 0:
        np.testing.assert_allclose(model.tensors["0.running_mean"], reference.running(0, exact_x.mean(axis=0)), rtol=0, atol=allowed)
        np.testing.assert_allclose(model.tensors["0.running_var"], reference.running(1, exact_x.var(axis=0, ddof=1)), rtol=0, atol=allowed)
        assert model.tensors["0.num_batches_tracked"] == 1


def test_a_single_feature_is_its_own_mean(dtype):
    model = fb.Sequential(fb.LayerNorm(1), dtype=dtype)
    assert not model.forward([[3.0], [-1e30], [0.0]]).any()
    assert not model.backward([[1.0], [2.0], [3.0]]).any()


@pytest.mark.parametrize("numbers, rows, width", [(1, 1, 1), (3, 7, 5), (2, 65, 16), (1, 130, 17)])
def test_embedding_follows_the_reference(numbers, rows, width, dtype, isa):
    model = fb.Sequential(fb.Embedding(rows, width), fb.Linear(numbers * width, 2), dtype=dtype, seed=1)
    rng = np.random.default_rng(3)
    x = rng.integers(0, rows, (70, numbers))
    w, v = np.float64(model.parameters["0.weight"]), np.float64(model.parameters["1.weight"])
    dy = rng.integers(-3, 4, (70, 2)).astype(np.float64)
    np.testing.assert_allclose(model.forward(x), reference.embedding_forward(x, w) @ v.T + np.float64(model.parameters["1.bias"]), rtol=0,
                               atol=trajectory(dtype, 1))
    assert not model.backward(dy).any(), "a category has no gradient"
    np.testing.assert_allclose(model.gradients["0.weight"], reference.embedding_backward(x, w, dy @ v), rtol=0, atol=70 * trajectory(dtype, 1))


def network(dtype="float32", seed=0):
    categories, numbers = fb.Input(2), fb.Input(5)
    h = fb.concat([fb.Embedding(9, 3)(categories), numbers])
    h = fb.ReLU()(fb.BatchNorm1d(70)(fb.Linear(11, 70)(h)))
    h = h + fb.LayerNorm(70, bias=False)(fb.Linear(70, 70)(fb.Dropout(0.2)(h)))
    return fb.Model([categories, numbers], fb.Linear(70, 3)(fb.BatchNorm1d(70, momentum=None, affine=False)(h)), dtype=dtype, seed=seed)


def table(rows=150, seed=5):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 9, (rows, 2)), rng.normal(size=(rows, 5))], rng.integers(0, 3, rows)


@pytest.mark.parametrize("optimizer", [lambda: fb.SGD(0.05, momentum=0.9, weight_decay=1e-3), lambda: fb.AdamW(1e-3)])
@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_same_bits_for_any_number_of_threads_and_both_paths(optimizer, clip_norm, dtype):
    x, y = table()

    def fitted():
        model = network(dtype)
        model.fit(x, y, loss=fb.CrossEntropyLoss(), optimizer=optimizer(), epochs=3, batch_size=32, seed=2, clip_norm=clip_norm)
        return model.state_dict() | {"prediction": model.predict(x)}

    first, *others = for_every_number_of_threads(fitted)
    for other in others:
        assert all(same_bits(first[name], other[name]) for name in first)
    if clip_norm is None:
        model, rule, loss, rng = network(dtype), optimizer(), fb.CrossEntropyLoss(), np.random.default_rng(2)
        for _ in range(3):
            for a, b, labels in fb.minibatches(*x, y, batch_size=32, seed=rng):
                model.backward(loss.value_and_grad(model.forward([a, b]), labels)[1])
                rule.step(model)
        assert all(same_bits(first[name], value) for name, value in model.state_dict().items())


def test_instruction_sets_agree_bit_for_bit(dtype):
    x, y = table()
    results = []
    for name in FUSED:
        with selected(name):
            model = network(dtype)
            model.fit(x, y, loss=fb.CrossEntropyLoss(), optimizer=fb.Adam(), epochs=2, seed=0)
            results.append(model.state_dict())
    for other in results[1:]:
        assert all(same_bits(results[0][name], other[name]) for name in other)


def test_predict_uses_the_running_statistics_row_by_row(dtype):
    x, y = table()
    model = network(dtype)
    model.fit(x, y, loss=fb.CrossEntropyLoss(), optimizer=fb.SGD(0.05), epochs=2, batch_size=50, seed=0)
    before = model.state_dict()
    whole = model.predict(x)
    for i in (0, 7, 149):
        assert same_bits(model.predict([part[i : i + 1] for part in x]), whole[i : i + 1])
    assert same_bits(model.forward(x, training=False), whole)
    assert all(same_bits(before[name], value) for name, value in model.state_dict().items()), "evaluation changed the model"
    assert model.tensors["batchnorm_0.num_batches_tracked"] == model.tensors["batchnorm_1.num_batches_tracked"] == 6


def test_without_momentum_statistics_are_the_average_of_all_batches():
    model = fb.Sequential(fb.BatchNorm1d(3, momentum=None), dtype="float64")
    x = np.random.default_rng(0).normal(size=(4, 10, 3))
    for batch in x:
        model.forward(batch)
    np.testing.assert_allclose(model.tensors["0.running_mean"], x.mean(axis=(0, 1)), rtol=CLOSED_FORM, atol=CLOSED_FORM)
    np.testing.assert_allclose(model.tensors["0.running_var"], x.var(axis=1, ddof=1).mean(axis=0), rtol=CLOSED_FORM)


def test_a_norm_that_stands_twice_counts_both_passes():
    norm = fb.BatchNorm1d(3)
    model = fb.Sequential(norm, fb.Linear(3, 3), norm, dtype="float64", seed=0)
    model.forward(np.random.default_rng(0).normal(size=(6, 3)))
    assert model.tensors["0.num_batches_tracked"] == 2 and list(model.parameters) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_statistics_are_state_but_no_parameters(tmp_path):
    model = network("float64")
    x, y = table()
    optimizer = fb.Adam(1e-2)
    model.fit(x, y, loss=fb.CrossEntropyLoss(), optimizer=optimizer, epochs=1, seed=0)
    measured = {name for name in model.state_dict() if "running" in name or "tracked" in name}
    assert len(measured) == 6 and not measured & (model.parameters.keys() | model.gradients.keys())
    assert not any(name.split(".", 1)[1] in measured for name in optimizer.state_dict() if "." in name)
    model.save(tmp_path / "m.safetensors")
    for other in (fb.load(tmp_path / "m.safetensors"), pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert all(same_bits(value, other.state_dict()[name]) for name, value in model.state_dict().items())
        assert same_bits(other.predict(x), model.predict(x)) and other.config() == model.config()
    twin = network("float64", seed=3)
    twin.load_state_dict(model.state_dict())
    assert same_bits(twin.predict(x), model.predict(x))
    with pytest.raises(ValueError, match="lacks batchnorm_0.running_mean"):
        twin.load_state_dict({name: value for name, value in model.state_dict().items() if name != "batchnorm_0.running_mean"})
    assert "8,5" not in model.summary() and f"{sum(v.size for v in model.parameters.values()):,} parameters" in model.summary()


def test_divergence_leaves_finite_statistics():
    """the loss of the last batch overflows: what that batch did to the running statistics is not kept"""
    model, twin = (fb.Sequential(fb.Linear(2, 3), fb.BatchNorm1d(3), fb.Linear(3, 1), dtype="float64", seed=0) for _ in range(2))
    x = np.random.default_rng(0).normal(size=(40, 2))
    y = np.where(np.arange(40) < 30, 0, 1e200)[:, None]
    with pytest.raises(FloatingPointError, match="batch 4"):
        model.fit(x, y, loss=fb.MSELoss(), optimizer=fb.SGD(0.1), batch_size=10, shuffle=False)
    twin.fit(x[:30], y[:30], loss=fb.MSELoss(), optimizer=fb.SGD(0.1), batch_size=10, shuffle=False)
    assert all(same_bits(value, twin.state_dict()[name]) for name, value in model.state_dict().items())


def test_gradients_agree_with_central_differences():
    model = network("float64")
    x, y = table(12)
    model.forward(x)
    report = fb.check_gradients(model, fb.CrossEntropyLoss(), x, y)
    assert report.ok, str(report)
    assert [row.name for row in report.rows if row.name.startswith("input")] == ["input 1"]


@pytest.mark.parametrize("make, error, words", [
    (lambda: fb.LayerNorm(0), ValueError, "normalized_shape"),
    (lambda: fb.LayerNorm(3, eps=0), ValueError, "eps"),
    (lambda: fb.LayerNorm(3, bias=1), TypeError, "bias"),
    (lambda: fb.LayerNorm(3)(fb.Input(4)), ValueError, "expects 3 features, got 4"),
    (lambda: fb.BatchNorm1d(2.5), TypeError, "num_features"),
    (lambda: fb.BatchNorm1d(3, momentum=1.5), ValueError, "momentum"),
    (lambda: fb.Sequential(fb.Linear(4, 5), fb.BatchNorm1d(4)), ValueError, "layer 1"),
    (lambda: fb.Sequential(fb.BatchNorm1d(2)).forward([[1.0, 2.0]]), ValueError, "at least 2 rows"),
    (lambda: fb.Sequential(fb.BatchNorm1d(1)).fit(np.ones((9, 1)), np.ones((9, 1)), loss=fb.MSELoss(), optimizer=fb.SGD(1), batch_size=4), ValueError, "batch_size"),
    (lambda: fb.Embedding(0, 3), ValueError, "num_embeddings"),
    (lambda: fb.Embedding(3, 3, init="uniform"), ValueError, "init"),
    (lambda: fb.Model(x := fb.Input(2), fb.Embedding(4, 2)(fb.relu(x))), ValueError, "takes an input that holds categories"),
    (lambda: fb.Sequential(fb.Embedding(2**24 + 1, 1)), ValueError, r"at most 2\*\*24"),
    (lambda: fb.Sequential(fb.Embedding(4, 2)).predict([[4]]), ValueError, "from 0 to 3 .* got 4 in row 0, column 0"),
    (lambda: fb.Sequential(fb.Embedding(4, 2)).predict([[0], [-1]]), ValueError, "got -1 in row 1"),
    (lambda: fb.Sequential(fb.Embedding(4, 2)).forward([[0.5]]), ValueError, "got 0.5"),
    (lambda: fb.Sequential(fb.Embedding(4, 2)).predict([[np.nan]]), ValueError, "got nan"),
    (lambda: network().predict([[[9, 0]], [[0] * 5]]), ValueError, "got 9 in row 0, column 0"),
])
def test_errors_name_what_came(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_an_empty_batch_passes_where_no_statistics_are_made():
    model = fb.Sequential(fb.Linear(3, 4), fb.LayerNorm(4), seed=0)
    assert model.forward(np.zeros((0, 3))).shape == (0, 4) and model.backward(np.zeros((0, 4))).shape == (0, 3)
    assert not any(gradient.any() for gradient in model.gradients.values())


def test_an_embedding_alone_takes_one_column_and_the_chain_says_how_many():
    assert fb.Sequential(fb.Embedding(4, 2)).predict([[3], [0]]).shape == (2, 2)
    assert fb.Sequential(fb.Embedding(4, 2), fb.LayerNorm(6)).inputs == 3
    with pytest.raises(ValueError, match="layer 1"):
        fb.Sequential(fb.Embedding(4, 2), fb.Linear(7, 1))
