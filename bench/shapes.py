"""The workloads, by name: networks to train and shapes for the kernels."""

from dataclasses import dataclass
from itertools import pairwise
from math import prod

import numpy as np

_RATES = {"sgd": 0.01, "momentum": 0.01, "adam": 0.001}
MOMENTUM = 0.9  # of "momentum"; Adam has PyTorch's defaults


@dataclass(frozen=True)
class Net:
    """A dense network and how it is trained.

    widths: inputs, hidden layers, outputs. activation: "relu", "tanh" or "sigmoid" after every layer but the last.
    optimizer: "sgd", "momentum" or "adam". loss: "mse" (mean over all elements) or "ce" (softmax cross-entropy,
    integer labels, mean over rows). skips: the input of a hidden layer that is as wide as its output is added to it, after the activation.
    """

    name: str
    widths: tuple
    batch: int
    activation: str
    optimizer: str
    loss: str
    dtype: str = "float32"
    skips: bool = False

    @property
    def lr(self):
        return _RATES[self.optimizer]

    @property
    def flops(self):
        """Of the products of one step: x wᵀ, δᵀ x and δ w per layer, the last not for the first layer."""
        products = [inputs * outputs for inputs, outputs in pairwise(self.widths)]
        return 2 * self.batch * (3 * sum(products) - products[0])

    @property
    def batches(self):
        """Batches in the training data: enough rows to be an epoch, little enough for a turn of a few milliseconds."""
        bytes_per_batch = self.batch * (self.widths[0] + self.widths[-1]) * np.dtype(self.dtype).itemsize
        return max(1, min(8192 // self.batch, 2**23 // bytes_per_batch, 10**9 // self.flops))

    @property
    def layout(self):
        """The widths as text, runs of one width shortened: 160x5-1."""
        parts, widths = [], list(self.widths)
        while widths:
            run = next((i for i, width in enumerate(widths) if width != widths[0]), len(widths))
            parts += [f"{widths[0]}x{run}"] if run > 2 else [str(widths[0])] * run
            del widths[:run]
        return "-".join(parts)

    def weights(self, seed=0):
        """Start of every contestant: list of (w (O, I), b (O,)), both U(±1/√I)."""
        rng = np.random.default_rng(seed)
        return [tuple((rng.uniform(-1, 1, shape) / np.sqrt(inputs)).astype(self.dtype)
                      for shape in ((outputs, inputs), (outputs,)))
                for inputs, outputs in pairwise(self.widths)]

    def data(self, seed=1):
        """(x, y) of `batches` full batches: x N(0, 1), y N(0, 1) for "mse", labels for "ce"."""
        rng = np.random.default_rng(seed)
        rows, inputs, outputs = self.batches * self.batch, self.widths[0], self.widths[-1]
        x = rng.standard_normal((rows, inputs)).astype(self.dtype)
        if self.loss == "ce":
            return x, rng.integers(outputs, size=rows)
        return x, rng.standard_normal((rows, outputs)).astype(self.dtype)


NETS = (
    Net("iris", (4, 16, 3), 16, "relu", "sgd", "mse"),
    Net("xla10", (10, 10, 10, 10, 10, 1), 32, "relu", "sgd", "mse"),
    Net("chains", (4, 32, 16, 4), 256, "tanh", "adam", "mse"),
    Net("digits", (64, 32, 10), 32, "relu", "sgd", "ce"),
    Net("nielsen", (784, 30, 10), 10, "sigmoid", "sgd", "mse"),
    Net("odd", (45, 46, 45, 7), 50, "relu", "sgd", "ce"),
    Net("mnist1", (784, 128, 10), 64, "relu", "sgd", "ce"),
    Net("xla160", (160,) * 5 + (1,), 32, "relu", "sgd", "mse"),
    Net("mnist3", (784, 256, 128, 10), 128, "relu", "adam", "ce"),
    Net("higgs", (28, *(300,) * 5, 1), 100, "tanh", "momentum", "mse"),
    Net("tabular", (100, *(512,) * 3, 1), 256, "relu", "adam", "mse"),
    Net("wide", (1024,) * 5, 512, "relu", "sgd", "mse"),
    Net("large", (2048,) * 4, 1024, "relu", "sgd", "mse"),
)

# The published thread cliff: one width more must cost one width more (pytorch#144633).
SWEEP = tuple(Net(f"w{width}", (10, width, width, 10), 128, "relu", "adam", "mse")
              for width in (8, 16, 24, 32, 40, 45, 46, 48, 56, 64, 96, 128, 192, 256, 384, 512, 768, 1024))


# A chain and the residual net of the same layers.
SKIPS = tuple(Net(f"{name}{batch}", (64, *(256,) * 8, 10), batch, "relu", "sgd", "mse", skips=name == "residual")
              for batch in (32, 128) for name in ("chain", "residual"))


# Linear and logistic regression: a few outputs, no hidden layer.
LINEAR = (
    Net("linear30", (30, 1), 32, "relu", "sgd", "mse"),
    Net("linear379", (379, 3), 365, "relu", "sgd", "mse"),
    Net("linear784", (784, 1), 256, "relu", "sgd", "mse"),
    Net("logistic100", (100, 3), 1024, "relu", "adam", "ce"),
    Net("logistic784", (784, 10), 64, "relu", "sgd", "ce"),
    Net("logistic1000", (1000, 2), 100, "relu", "sgd", "ce"),
)

# Small nets trained on all rows at once, or on many.
TALL = (
    Net("curve", (2, 50, 50, 1), 1000, "tanh", "adam", "mse"),
    Net("housing", (13, 64, 64, 1), 600, "relu", "adam", "mse"),
    Net("digits1797", (64, 32, 10), 1797, "relu", "sgd", "ce"),
    Net("mnist1000", (784, 128, 10), 1000, "relu", "sgd", "ce"),
    Net("policy2048", (8, 128, 128, 2), 2048, "tanh", "adam", "mse"),
)


def random_nets(count=20, seed=0):
    """Nets nobody tuned for: 0 to 4 hidden layers of odd widths, batch 1 to 4096, both types."""
    rng = np.random.default_rng(seed)
    nets = []
    for index in range(count):
        widths = tuple(int(width) for width in 2 * (2 ** rng.uniform(0, 8, rng.integers(2, 7))).astype(int) + 1)
        choices = [str(rng.choice(values)) for values in (("relu", "tanh", "sigmoid"), ("sgd", "momentum", "adam"),
                                                          ("mse", "ce"), ("float32", "float64"))]
        nets.append(Net(f"random{index}", widths, int(2 ** rng.uniform(0, 12)), *choices))
    return tuple(nets)


def select_nets(names):
    """Nets by name; "table", "sweep", "skips", "linear", "tall" and "random" stand for their groups, "random@7" for those of seed 7, nothing for the table."""
    groups = {"table": NETS, "sweep": SWEEP, "skips": SKIPS, "linear": LINEAR, "tall": TALL, "random": random_nets()}
    seeds = {name: int(name.removeprefix("random@")) for name in names if name.startswith("random@") and name[7:].isdecimal()}
    groups |= {name: random_nets(seed=seed) for name, seed in seeds.items()}
    known = {net.name: (net,) for group in groups.values() for net in group} | groups
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"--shapes: unknown {', '.join(unknown)}; known: {', '.join(groups)} and the nets in them, "
                         f"such as {', '.join(net.name for net in NETS)}")
    return [net for name in names or ("table",) for net in known[name]]


@dataclass(frozen=True)
class Prediction:
    """What a net makes of so many rows."""

    net: Net
    rows: int

    @property
    def flops(self):
        return 2 * self.rows * sum(inputs * outputs for inputs, outputs in pairwise(self.net.widths))

    def x(self, seed=1):
        return np.random.default_rng(seed).standard_normal((self.rows, self.net.widths[0])).astype(self.net.dtype)


PREDICTED = ("iris", "digits", "mnist1", "xla160", "policy", "tabular", "wide")  # one row and some: what an agent asks for; and many
ROWS = (1, 8, 64, 1024)
POLICY = Net("policy", (8, 256, 256, 2), 64, "tanh", "adam", "mse")  # of reinforcement learning


def select_predictions(names):
    """Every number of rows for nets by name, or for those of PREDICTED."""
    known = {net.name: net for net in (*NETS, POLICY)}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"--shapes: unknown {', '.join(unknown)}; known: {', '.join(known)}")
    return [Prediction(known[name], rows) for name in names or PREDICTED for rows in ROWS]


# Products as a network meets them, (B, I, O) of x (B, I), w (O, I).
LAYERS = {
    "iris": (16, 4, 16),
    "digits": (32, 64, 32),
    "mnist1": (64, 784, 128),
    "higgs": (100, 300, 300),
    "wide": (512, 1024, 1024),
}

# Plain products, (m, k, n) of (m, k) times (k, n), each in the three orientations of a step.
PRODUCTS = {
    "50": (50, 50, 50),
    "100": (100, 100, 100),
    "200": (200, 200, 200),
    "1000": (1000, 1000, 1000),
    "rank64": (1000, 64, 1000),
    "m1": (1, 1000, 1000),
    "m6": (6, 1000, 1000),
    "n10": (1000, 1000, 10),
    "n16": (1000, 1000, 16),
}

# (B, width) of elementwise functions: odd in both, in the first-level cache, in memory.
ELEMENTWISE = {"odd": (45, 47), "cache": (16, 256), "memory": (2048, 2048)}

# (B, classes) of softmax.
SCORES = {"32x10": (32, 10), "256x10": (256, 10), "128x1000": (128, 1000)}

# Parameters of an update: 4-16-3, 784-128-10, 1024x5.
PARAMETERS = {"iris": (131,), "mnist1": (101_770,), "wide": (4_198_400,)}


def size(shape):
    """Number of elements."""
    return prod(shape)
