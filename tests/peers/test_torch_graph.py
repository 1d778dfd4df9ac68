"""Graphs train as they do in PyTorch: skips, gates, shared and transposed weights, several inputs."""
import numpy as np
import pytest
from tolerance import GRAPH, peer

torch = pytest.importorskip("torch")

import fastbp as fb

F = torch.nn.functional


def residual():
    x, a, b, c = fb.Input(7), fb.Linear(7, 9, name="a"), fb.Linear(9, 9, name="b"), fb.Linear(9, 3, name="c")
    h = fb.ReLU()(a(x))
    h = h + fb.ReLU()(b(h))
    h = h + fb.Tanh()(b(h))
    return fb.Model(x, c(h), dtype="float64", seed=0), [7], torch_residual


def torch_residual(p, x):
    h = F.relu(F.linear(x, p["a.weight"], p["a.bias"]))
    h = h + F.relu(F.linear(h, p["b.weight"], p["b.bias"]))
    h = h + torch.tanh(F.linear(h, p["b.weight"], p["b.bias"]))
    return F.linear(h, p["c.weight"], p["c.bias"])


def gated():
    x, a, b, c = fb.Input(5), fb.Linear(5, 8, name="a"), fb.Linear(5, 8, name="b"), fb.Linear(13, 3, name="c")
    scale = fb.Parameter(8, init=1.5, name="scale")
    h = fb.tanh(a(x)) * fb.sigmoid(b(x)) * scale
    return fb.Model(x, c(fb.concat([h, x])) / (1 + fb.square(fb.sum(x))), dtype="float64", seed=0), [5], torch_gated


def torch_gated(p, x):
    h = torch.tanh(F.linear(x, p["a.weight"], p["a.bias"])) * torch.sigmoid(F.linear(x, p["b.weight"], p["b.bias"])) * p["scale"]
    return F.linear(torch.cat([h, x], 1), p["c.weight"], p["c.bias"]) / (1 + x.sum(1, keepdim=True) ** 2)


def towers():
    u, v, a, b = fb.Input(6), fb.Input(6), fb.Linear(6, 10, name="a"), fb.Linear(10, 3, name="b")
    left, right = (b(fb.ReLU()(a(side))) for side in (u, v))
    return fb.Model([u, v], fb.exp(-fb.square(left - right)), dtype="float64", seed=0), [6, 6], torch_towers


def torch_towers(p, u, v):
    left, right = (F.linear(F.relu(F.linear(side, p["a.weight"], p["a.bias"])), p["b.weight"], p["b.bias"]) for side in (u, v))
    return torch.exp(-((left - right) ** 2))


def tied():
    x, a = fb.Input(3), fb.Linear(3, 40, name="a")
    return fb.Model(x, a.transpose(name="back")(fb.Sigmoid()(a(x))), dtype="float64", seed=0), [3], torch_tied


def torch_tied(p, x):
    return F.linear(torch.sigmoid(F.linear(x, p["a.weight"], p["a.bias"])), p["a.weight"].T, p["back.bias"])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize("build", [residual, gated, towers, tied])
def test_graph_trains_as_in_torch(build, optimizer, threads, no_grain):
    """five epochs of four batches, the last one ragged"""
    model, widths, function = build()
    rng = np.random.default_rng(0)
    x, y = [rng.normal(size=(58, width)) for width in widths], rng.normal(size=(58, 3))
    parameters = {name: torch.tensor(value, requires_grad=True) for name, value in model.state_dict().items()}
    other = getattr(torch.optim, optimizer)(parameters.values(), lr=0.01)
    for _ in range(5):
        for i in range(0, 58, 16):
            other.zero_grad()
            F.mse_loss(function(parameters, *(torch.tensor(part[i : i + 16]) for part in x)), torch.tensor(y[i : i + 16])).backward()
            other.step()
    with fb.num_threads(threads):
        model.fit(x if len(x) > 1 else x[0], y, loss=fb.MSELoss(), optimizer=getattr(fb, optimizer)(lr=0.01), epochs=5, batch_size=16, shuffle=False)
    for name, value in model.parameters.items():
        exact = parameters[name].detach().numpy()
        assert np.all(np.abs(value - exact) <= peer("float64") * np.maximum(1, np.abs(exact))), name


# --- 300 random graphs beside autograd -------------------------------------------------------------------------------

GRAPHS, STEPS, ROWS = 300, 5, 6


class Twin:
    """A random graph, twice: symbols, and functions of the values before them, of the parameters and of the inputs"""

    def __init__(self, seed):
        self.rng = np.random.default_rng([17, seed])
        self.symbols, self.functions, self.linears, self.readers = [], [], [], []
        self.widths = self.rng.integers(1, 6, self.rng.integers(1, 4)).tolist()
        for i, width in enumerate(self.widths):
            self.put(fb.Input(width), lambda values, p, x, i=i: x[i])
        for _ in range(self.rng.integers(4, 36)):
            self.grow()
        ends = [i for i, readers in enumerate(self.readers) if readers == 0]   # the head reads what nobody else does
        head = self.linear(self.put(fb.concat([self.symbols[i] for i in ends]), lambda values, p, x: torch.cat([values[i] for i in ends], 1), *ends), 2)
        inner = [i for i in range(len(self.widths), head) if self.symbols[i].width <= 5]
        self.outputs = [head, *self.rng.permutation(inner)[: self.rng.integers(0, 3)].tolist()]
        self.model = fb.Model([self.symbols[i] for i in range(len(self.widths))], [self.symbols[i] for i in self.outputs], dtype="float64", seed=seed)

    def put(self, symbol, function, *reads):
        self.symbols.append(symbol)
        self.functions.append(function)
        self.readers.append(0)
        for i in set(reads):
            self.readers[i] += 1
        return len(self.symbols) - 1

    def pick(self, width=None):
        """A node that fewer than six read, of this width; None when there is none"""
        fitting = [i for i, symbol in enumerate(self.symbols) if self.readers[i] < 6 and width in (None, symbol.width)]
        return int(self.rng.choice(fitting)) if fitting else None

    def linear(self, i, width):
        self.linears.append(fb.Linear(self.symbols[i].width, width, name=f"dense{len(self.linears)}"))
        return self.apply(self.linears[-1], i)

    def apply(self, layer, i):
        return self.put(layer(self.symbols[i]), lambda values, p, x: F.linear(values[i], p[f"{layer.name}.weight"], p[f"{layer.name}.bias"]), i)

    def grow(self):
        rng, i = self.rng, self.pick()
        a = self.symbols[i]
        kind = rng.choice(["linear", "shared", "tied", "function", "binary", "number", "concat", "sum", "parameter"])
        layer = self.linears[rng.integers(len(self.linears))] if self.linears else None
        fitting = None if layer is None else self.pick({"shared": layer.in_features, "tied": layer.out_features}.get(kind, -1))
        if kind in ("shared", "tied") and fitting is None:
            kind = "linear"
        j = self.pick(int(rng.choice([1, a.width])))
        j = i if j is None else j
        b = self.symbols[j]
        if kind == "linear":
            self.linear(i, int(rng.integers(1, 6)))
        elif kind == "shared":
            self.apply(layer, fitting)
        elif kind == "tied":
            back = layer.transpose(bias=False, name=f"back{len(self.symbols)}")
            self.put(back(self.symbols[fitting]), lambda values, p, x: values[fitting] @ p[f"{layer.name}.weight"], fitting)
        elif kind == "function":
            name = str(rng.choice(["tanh", "sigmoid", "relu", "sin", "cos", "exp", "square", "sqrt", "log"]))
            inner = {"exp": lambda v: -(v * v), "sqrt": lambda v: 1 + v * v, "log": lambda v: 1 + v * v, "square": lambda v: 0.3 * v}.get(name, lambda v: v)
            self.put(getattr(fb, name)(inner(a)), lambda values, p, x: getattr(torch, name)(inner(values[i])), i)
        elif kind == "binary":
            sign = rng.choice(["+", "-", "*", "/"])
            combine = {"+": lambda v, w: v + w, "-": lambda v, w: w - v, "*": lambda v, w: 0.5 * v * w, "/": lambda v, w: v / (1 + w * w)}[sign]
            self.put(combine(a, b), lambda values, p, x: combine(values[i], values[j]), i, j)
        elif kind == "number":
            self.put(1 - 2 * (a + 0.25) / 3, lambda values, p, x: 1 - 2 * (values[i] + 0.25) / 3, i)
        elif kind == "concat" and a.width + b.width <= 12:
            self.put(fb.concat([a, b]), lambda values, p, x: torch.cat([values[i], values[j]], 1), i, j)
        elif kind == "parameter":
            name = f"value{len(self.symbols)}"
            value = fb.Parameter(int(rng.choice([1, a.width])), init=lambda rng, shape: rng.normal(size=shape), name=name)
            self.put(a * value, lambda values, p, x: values[i] * p[name], i)
        else:
            self.put(fb.sum(a), lambda values, p, x: values[i].sum(1, keepdim=True), i)

    def evaluate(self, parameters, x):
        """PyTorch's outputs"""
        values = []
        for function in self.functions:
            values.append(function(values, parameters, x))
        return [values[i] for i in self.outputs]


def near(actual, exact):
    """within 1e-10 of PyTorch's numbers, relative to the largest"""
    exact = exact.detach().numpy()
    return np.all(np.abs(actual - exact) <= GRAPH * max(1, np.abs(exact).max()))


@pytest.mark.parametrize("seed", range(GRAPHS))
def test_random_graph_is_autograd_s(seed, no_grain):
    twin = Twin(seed)
    model, rng = twin.model, np.random.default_rng(seed)
    x = [rng.normal(size=(ROWS, width)) for width in twin.widths]
    parameters = {name: torch.tensor(value, requires_grad=True) for name, value in model.state_dict().items()}
    tensors = [torch.tensor(part, requires_grad=True) for part in x]
    exact = twin.evaluate(parameters, tensors)
    y = [rng.normal(size=part.shape) for part in exact]
    weights = rng.uniform(0.2, 2, len(y)).tolist()

    def whole(outputs):
        return sum(w * F.mse_loss(out, torch.tensor(t)) for w, out, t in zip(weights, outputs, y, strict=True))

    outputs, loss = model.forward(x), fb.MSELoss()
    assert all(near(out, part) for out, part in zip(outputs, exact, strict=True))
    dx = model.backward([w * loss.value_and_grad(out, t)[1] for w, out, t in zip(weights, outputs, y, strict=True)])
    whole(exact).backward()
    assert all(near(part, torch.zeros(part.shape) if tensor.grad is None else tensor.grad) for part, tensor in zip(dx, tensors, strict=True))
    for name, gradient in model.gradients.items():
        assert near(gradient, torch.zeros(gradient.shape) if parameters[name].grad is None else parameters[name].grad), name

    other = torch.optim.SGD(parameters.values(), lr=1e-3, momentum=0.9)
    for _ in range(STEPS):
        other.zero_grad()
        whole(twin.evaluate(parameters, [tensor.detach() for tensor in tensors])).backward()
        other.step()
    start, bits = model.state_dict(), set()
    for threads in (1, 2, 3, 8):
        model.load_state_dict(start)
        with fb.num_threads(threads):
            model.fit(x, y, loss=[fb.MSELoss() for _ in y], loss_weights=weights, optimizer=fb.SGD(lr=1e-3, momentum=0.9), epochs=STEPS, batch_size=ROWS,
                      shuffle=False)
        bits.add(model.flat_parameters.tobytes())
    assert len(bits) == 1, "the bits depend on the number of threads"
    for name, value in model.parameters.items():
        assert near(value, parameters[name]), name


def test_the_random_graphs_are_what_they_should_be():
    """up to 40 nodes, up to six readers of a node, several inputs and outputs, shared and transposed layers"""
    twins = [Twin(seed) for seed in range(GRAPHS)]
    assert max(len(twin.symbols) for twin in twins) >= 35 and max(max(twin.readers) for twin in twins) >= 6
    assert {len(twin.widths) for twin in twins} == {1, 2, 3} and {len(twin.outputs) for twin in twins} == {1, 2, 3}
    shared = [sum(symbol.layer in twin.linears for symbol in twin.symbols) > len(twin.linears) for twin in twins]
    assert sum(shared) > GRAPHS / 4
