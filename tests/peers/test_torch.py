"""200 drawn networks train as they do in PyTorch: layers, losses, optimizers and minibatches in combination."""
import collections
import functools
import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import fastbp as fb
import reference
import tolerance

STEPS = 20
ACTIVATIONS = [(name, 0.2) if name == "LeakyReLU" else (name,) for name in reference.ACTIVATIONS]
# (name, options, kind of target)
LOSSES = [
    ("MSELoss", {}, "real"),
    ("MSELoss", {"reduction": "batchmean", "scale": 0.5}, "real"),
    ("MSELoss", {"reduction": "sum", "scale": 0.01}, "real"),
    ("L1Loss", {}, "real"),
    ("HuberLoss", {"delta": 0.5}, "real"),
    ("BCELoss", {}, "binary"),
    ("BCELoss", {}, "probability"),
    ("BCEWithLogitsLoss", {}, "binary"),
    ("BCEWithLogitsLoss", {}, "probability"),
    ("CrossEntropyLoss", {}, "label"),
    ("CrossEntropyLoss", {}, "distribution"),
    ("CrossEntropyLoss", {"label_smoothing": 0.1}, "label"),
    ("CrossEntropyLoss", {"label_smoothing": 0.2}, "distribution"),
]
OPTIMIZERS = [
    ("SGD", {"lr": 0.01}),
    ("SGD", {"lr": 0.01, "momentum": 0.9}),
    ("SGD", {"lr": 0.01, "momentum": 0.9, "nesterov": True}),
    ("SGD", {"lr": 0.01, "momentum": 0.5, "weight_decay": 0.1}),
    ("Adam", {"lr": 1e-3}),
    ("Adam", {"lr": 1e-3, "betas": (0.8, 0.99), "weight_decay": 0.1}),
    ("AdamW", {"lr": 1e-3, "weight_decay": 0.1}),
]
Case = collections.namedtuple("Case", "layers loss target optimizer epochs batch_size x y weight")


def draw_target(rng, kind, n, outputs):
    return {
        "real": lambda: rng.normal(size=(n, outputs)),
        "binary": lambda: rng.integers(0, 2, (n, outputs)).astype(float),
        "probability": lambda: rng.random((n, outputs)),
        "label": lambda: rng.integers(0, outputs, n),
        "distribution": lambda: rng.dirichlet(np.ones(outputs), n),
    }[kind]()


def draw(index, activations):
    """Every loss with every optimizer, activations in turn; sizes, biases, weights and epochs at random"""
    rng = np.random.default_rng(index)
    loss, options, target = LOSSES[index % len(LOSSES)]
    depth = index % 5
    widths = [*rng.integers(1, 71, depth + 1), rng.integers(2, 71)]
    layers = []
    for i in range(depth + 1):
        layers.append(("Linear", int(widths[i]), int(widths[i + 1]), bool(rng.integers(2))))
        layers += [next(activations)] if i < depth else []
    if loss == "BCELoss":
        layers.append(("Sigmoid",))
    elif target == "real" and rng.integers(2):
        layers.append(next(activations))
    epochs = int(rng.choice([1, 4]))
    batch_size = int(rng.integers(2, 14))
    n = STEPS // epochs * batch_size - int(rng.integers(1, batch_size))
    x = rng.normal(size=(n, widths[0]))
    y = draw_target(rng, target, n, int(widths[-1]))
    weight = rng.random(n) + 0.1 if rng.integers(2) else None
    optimizer = OPTIMIZERS[index // len(LOSSES) % len(OPTIMIZERS)]
    return Case(layers, (loss, options), target, optimizer, epochs, batch_size, x, y, weight)


CASES = [draw(i, turns) for turns in [itertools.cycle(ACTIVATIONS)] for i in range(200)]


def test_drawn_set_covers_every_class():
    hidden = [layer for c in CASES for layer in c.layers[1:-1] if layer[0] != "Linear"]
    linear = [layer for c in CASES for layer in c.layers if layer[0] == "Linear"]
    last = {c.layers[-1][0] for c in CASES}
    assert set(hidden) == set(ACTIVATIONS)
    assert last == {"Linear", *reference.ACTIVATIONS}
    pairs = {(str(c.loss), c.target, str(c.optimizer)) for c in CASES}
    assert len(pairs) == len(LOSSES) * len(OPTIMIZERS)
    assert {(str(c.loss), c.target, c.weight is None) for c in CASES} == {
        (str((name, options)), target, unweighted) for name, options, target in LOSSES for unweighted in (True, False)}
    assert {sum(layer[0] == "Linear" for layer in c.layers) for c in CASES} == {1, 2, 3, 4, 5}
    assert {(layer[3], c.epochs) for c in CASES for layer in c.layers if layer[0] == "Linear"} == {
        (bias, epochs) for bias in (True, False) for epochs in (1, 4)}
    assert {1, 2, 3, 69, 70} <= {width for layer in linear for width in layer[1:3]}
    assert all(len(c.x) % c.batch_size != 0 for c in CASES)


def optimizer_options(case, dtype):
    """In float32 Adam's ε is 1e-3: with 1e-8 its first update is the sign of a gradient, be that mere rounding"""
    name, options = case.optimizer
    return options if name == "SGD" or dtype == "float64" else {**options, "eps": 1e-3}


def torch_layer(kind, *options):
    return torch.nn.Softmax(dim=-1) if kind == "Softmax" else getattr(torch.nn, kind)(*options)


def torch_loss(case, prediction, y, weight):
    """Σ w ℓ / Σ w by hand: PyTorch's losses take no sample weights"""
    name, options = case.loss
    options = dict(options)
    reduction, scale = options.pop("reduction", "mean"), options.pop("scale", 1.0)
    values = getattr(torch.nn, name)(reduction="none", **options)(prediction, y).reshape(len(prediction), -1)
    weight = torch.ones(len(values), dtype=values.dtype) if weight is None else weight
    total = scale * (weight[:, None] * values).sum()
    return total / {"mean": values.shape[1] * weight.sum(), "batchmean": weight.sum(), "sum": 1.0}[reduction]


@functools.lru_cache(maxsize=1)
def torch_training(index, dtype):
    """The parameters before the first step and after each, as [{name: float64 array}]"""
    case = CASES[index]
    torch.set_num_threads(1)
    torch.manual_seed(index)
    real = getattr(torch, dtype)
    net = torch.nn.Sequential(*(torch_layer(*layer) for layer in case.layers)).to(real)
    optimizer = getattr(torch.optim, case.optimizer[0])(net.parameters(), **optimizer_options(case, dtype))
    x = torch.tensor(case.x, dtype=real)
    y = torch.tensor(case.y, dtype=torch.int64 if case.target == "label" else real)
    weight = None if case.weight is None else torch.tensor(case.weight, dtype=real)

    def snapshot():
        return {name: p.numpy().astype(np.float64) for name, p in net.state_dict().items()}

    states = [snapshot()]
    for rows in case_batches(case):
        optimizer.zero_grad()
        torch_loss(case, net(x[rows]), y[rows], None if weight is None else weight[rows]).backward()
        optimizer.step()
        states.append(snapshot())
    return states


def case_batches(case):
    return reference.batches(len(case.x), case.batch_size) * case.epochs


def by_fit(model, loss, optimizer, case, rows, batch_size, epochs):
    weight = None if case.weight is None else case.weight[rows]
    model.fit(case.x[rows], case.y[rows], loss=loss, optimizer=optimizer, epochs=epochs, batch_size=batch_size,
              shuffle=False, sample_weight=weight)


def by_steps(model, loss, optimizer, case, rows, batch_size, epochs):
    for batch in reference.batches(len(rows), batch_size) * epochs:
        batch = rows[batch]
        weight = None if case.weight is None else case.weight[batch]
        model.backward(loss.value_and_grad(model.forward(case.x[batch]), case.y[batch], weight)[1])
        optimizer.step(model)


def contestants(case, dtype, build):
    model = build(case.layers, dtype=dtype)
    optimizer = getattr(fb, case.optimizer[0])(**optimizer_options(case, dtype))
    return model, getattr(fb, case.loss[0])(**case.loss[1]), optimizer


def assert_close(actual, expected, relative, absolute=0.0, why=""):
    """Every element within `relative` of its tensor's largest"""
    assert set(actual) == set(expected)
    for name in expected:
        bound = relative * np.abs(expected[name]).max() + absolute
        worst = np.abs(actual[name] - expected[name]).max()
        assert worst <= bound, f"{name}: {worst:.3g} > {bound:.3g} {why}"


@pytest.mark.parametrize("index", range(len(CASES)))
def test_reference_follows_torch(index):
    case, states = CASES[index], torch_training(index, "float64")
    net = reference.Network(case.layers, states[0])
    loss = functools.partial(reference.LOSSES[case.loss[0]], **case.loss[1])
    optimizer = reference.OPTIMIZERS[case.optimizer[0]](**case.optimizer[1])
    for rows in case_batches(case):
        weight = None if case.weight is None else case.weight[rows]
        net.train_step(case.x[rows], case.y[rows], lambda p, y, w: loss(p, y, sample_weight=w), optimizer, weight)
    assert_close(net.parameters, states[-1], tolerance.peer("float64"))


@pytest.mark.parametrize("train", [by_fit, by_steps])
@pytest.mark.parametrize("index", range(len(CASES)))
def test_float64_follows_torch(index, train, build):
    case, states = CASES[index], torch_training(index, "float64")
    model, loss, optimizer = contestants(case, "float64", build)
    model.load_state_dict(states[0])
    train(model, loss, optimizer, case, np.arange(len(case.x)), case.batch_size, case.epochs)
    assert_close(model.state_dict(), states[-1], tolerance.peer("float64"))


@pytest.mark.parametrize("train", [by_fit, by_steps])
@pytest.mark.parametrize("index", range(len(CASES)))
def test_float32_updates_equal_torch(index, train, build):
    """Parameters are made equal before each step; either side keeps its own momenta"""
    case, states = CASES[index], torch_training(index, "float32")
    model, loss, optimizer = contestants(case, "float32", build)
    for step, rows in enumerate(case_batches(case)):
        before, after = states[step], states[step + 1]
        model.load_state_dict(before)
        train(model, loss, optimizer, case, rows, len(rows), 1)
        update = {name: p - before[name] for name, p in model.state_dict().items()}
        stored = np.finfo("float32").eps * max(np.abs(p).max() for p in before.values())
        assert_close(update, {name: after[name] - before[name] for name in after}, tolerance.peer("float32"), stored,
                     f"step {step}")
