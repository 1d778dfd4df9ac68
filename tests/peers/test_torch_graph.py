"""Graphs train as they do in PyTorch: skips, gates, shared and transposed weights, several inputs."""
import numpy as np
import pytest
from tolerance import peer

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
