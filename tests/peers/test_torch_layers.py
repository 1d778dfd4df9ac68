"""Random stacks with norms and embeddings train as in PyTorch, batch by batch, running statistics included."""
import numpy as np
import pytest
from tolerance import peer

torch = pytest.importorskip("torch")

import fastbp as fb

NN = torch.nn


def draw(seed):
    """(fastbp model, PyTorch model with the same parameters, categories or None, numbers, targets, batch size)"""
    rng = np.random.default_rng(seed)
    choose = lambda *values: values[rng.integers(len(values))]  # noqa: E731
    width, layers, peers = int(rng.integers(2, 40)), [], []
    embedding = None
    columns, numbers = int(rng.integers(1, 4)), int(rng.integers(1, 9))
    if choose(True, False):
        embedding = fb.Embedding(int(rng.integers(1, 20)), int(rng.integers(1, 7)), name="embedding")
    inputs = numbers + (columns * embedding.embedding_dim if embedding else 0)
    for i in range(int(rng.integers(1, 5))):
        fan_in = inputs if i == 0 else width
        layers.append(fb.Linear(fan_in, width, bias=choose(True, False)))
        peers.append(NN.Linear(fan_in, width, bias=layers[-1].bias))
        eps = choose(1e-5, 1e-3, 0.1)
        match choose("batch", "layer", "none"):
            case "batch":
                momentum, affine = choose(0.1, 0.5, None, 1.0), choose(True, False)
                layers.append(fb.BatchNorm1d(width, eps=eps, momentum=momentum, affine=affine))
                peers.append(NN.BatchNorm1d(width, eps=eps, momentum=momentum, affine=affine))
            case "layer":
                affine, bias = choose(True, False), choose(True, False)
                layers.append(fb.LayerNorm(width, eps=eps, elementwise_affine=affine, bias=bias))
                peers.append(NN.LayerNorm(width, eps=eps, elementwise_affine=affine, bias=bias))
        name = choose("ReLU", "Tanh", "Sigmoid", "GELU", "Identity")
        layers.append(getattr(fb, name)())
        peers.append(getattr(NN, name)())
    x = fb.Input(numbers)
    categories = fb.Input(columns) if embedding else None
    node = fb.concat([embedding(categories), x]) if embedding else x
    for layer in layers:
        node = layer(node)
    model = fb.Model([categories, x] if embedding else [x], node, dtype="float64", seed=seed)
    other = NN.Sequential(*peers).double()
    lookup = NN.Embedding(embedding.num_embeddings, embedding.embedding_dim).double() if embedding else None
    rows, batch = int(rng.integers(2, 90)), int(rng.integers(2, 33))
    rows += (rows - 1) % batch == 0   # no batch of one row
    data = [rng.integers(0, embedding.num_embeddings, (rows, columns))] if embedding else []
    return model, other, lookup, [*data, rng.normal(size=(rows, numbers))], rng.normal(size=(rows, width)), batch


def pairs(model, other, lookup):
    """(name, tensor of the model, tensor of PyTorch), in the order of the stack"""
    mine = [name for name in model.state_dict() if not name.startswith("embedding.")]
    theirs = list(other.state_dict().values())
    assert len(mine) == len(theirs)
    result = list(zip(mine, theirs, strict=True))
    return result + ([("embedding.weight", lookup.weight)] if lookup is not None else [])


@pytest.mark.parametrize("seed", range(100))
def test_training_follows_torch(seed):
    model, other, lookup, x, y, batch = draw(seed)
    model.load_state_dict({name: value.detach().numpy() for name, value in pairs(model, other, lookup)})
    parameters = [*other.parameters(), *(lookup.parameters() if lookup is not None else ())]
    rule, peer_rule = fb.SGD(lr=0.02, momentum=0.9), torch.optim.SGD(parameters, lr=0.02, momentum=0.9)

    def output(rows):
        parts = [torch.tensor(part[rows]) for part in x]
        return other(torch.cat([lookup(parts[0]).flatten(1), parts[1]], 1) if lookup is not None else parts[0])

    for _ in range(2):
        for i in range(0, len(y), batch):
            rows = slice(i, i + batch)
            peer_rule.zero_grad()
            NN.functional.mse_loss(output(rows), torch.tensor(y[rows])).backward()
            peer_rule.step()
    model.fit(x, y, loss=fb.MSELoss(), optimizer=rule, epochs=2, batch_size=batch, shuffle=False)
    for name, value in pairs(model, other, lookup):
        exact = value.detach().numpy()
        assert np.all(np.abs(model.tensors[name] - exact) <= peer("float64") * np.maximum(1, np.abs(exact))), name
    other.eval()
    with torch.no_grad():
        exact = output(slice(None)).numpy()
    assert np.all(np.abs(model.predict(x) - exact) <= peer("float64") * np.maximum(1, np.abs(exact)))
