"""Models: a graph of layers, its parameters in one flat array, and what can be done with them.

`Sequential` is the chain. Parameters lie row-major in one flat array, gradients in another of the same layout, each tensor at a multiple of
64 bytes; `parameters` and `gradients` are views.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _core, arrays, compiler, init
from .compiler import Node
from .runtime import InUse
from .workspace import Workspace

if TYPE_CHECKING:
    from .optim import Optimizer
    from .training import History


class Layer:
    """A description of one step of a computation. It holds hyper-parameters and no arrays; a model gives it parameters.

    For the compiler a layer is its `operation`: "dense" (with in_features, out_features, bias, init), "activation" (elementwise), "softmax",
    "dropout" (probability alpha) or "identity". An activation names its kernel in `function` and its parameter in `alpha`;
    `derivative_from` says whether f' comes from the output (then it fuses into the layer before it) or needs the input kept.
    """

    operation: str
    function = "identity"
    alpha = 0.0
    derivative_from = "output"

    def width(self, inputs: int | None) -> int | None:
        """Output features for `inputs` features; None while they are unknown. ValueError when the layer cannot take them."""
        return inputs

    def config(self) -> dict[str, Any]:
        """The constructor's arguments as plain data."""
        return {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.config().items())})"


PROGRAMS_KEPT = 8
KINDS: dict[str, type[Layer]] = {}   # what a model file may name; filled by layers.py


class Model:
    """A graph with parameters. Made by its subclasses; not safe for simultaneous training from several threads (RuntimeError), safe for
    simultaneous `predict`."""

    def __init__(self, nodes: list[Node], names: Mapping[Layer, str], dtype: Any, seed: Any):
        self.nodes = tuple(nodes)
        self.output = len(nodes) - 1
        self._names = dict(names)
        self._dtype = arrays.dtype_of(dtype)
        rng = arrays.generator(seed)
        self.seed = int(rng.integers(2**63)) if seed is None or isinstance(seed, np.random.Generator) else _counter("seed", seed)
        self.steps = 0   # training passes made: what dropout's bits depend on beside the seed
        self.optimizer: Optimizer | None = None   # the one of the running fit
        self._lay_out()
        self._initialise(rng)
        self._reset()

    def _lay_out(self) -> None:
        """Offsets of every parameter in the flat arrays, and the arrays."""
        unit = arrays.ALIGNMENT // self._dtype.itemsize
        self._shapes: dict[str, tuple[int, tuple[int, ...]]] = {}   # name -> offset, shape
        self._places: dict[Layer, tuple[int, int]] = {}
        size = 0
        for layer, name in self._names.items():
            offsets = []
            for part, shape in (("weight", (layer.out_features, layer.in_features)), ("bias", (layer.out_features,) if layer.bias else None)):
                offsets.append(-1 if shape is None else size)
                if shape is not None:
                    self._shapes[f"{name}.{part}"] = size, shape
                    size += -(-int(np.prod(shape, dtype=object)) // unit) * unit
            self._places[layer] = offsets[0], offsets[1]
        self._flat_parameters = arrays.aligned_zeros(size, self._dtype)
        self._flat_gradients = arrays.aligned_zeros(size, self._dtype)

    def _initialise(self, rng: np.random.Generator) -> None:
        views = self.views(self._flat_parameters)
        for layer, name in self._names.items():
            shape = layer.out_features, layer.in_features
            views[f"{name}.weight"][...] = init.weight(layer.init, rng, shape)
            if layer.bias:
                views[f"{name}.bias"][...] = init.bias(layer.init, rng, shape[:1], layer.in_features)

    def _reset(self) -> None:
        """What is derived or belongs to this process: programs, views, marks."""
        self.in_use = InUse()
        self._programs: dict[Any, _core.Program] = {}
        self.workspace = Workspace()
        self._pending: _core.Program | None = None   # holds the batch that backward may be called for
        self._parameters = MappingProxyType(self.views(self._flat_parameters))
        self._gradients = MappingProxyType(self.views(self._flat_gradients))
        self._predictor: _core.Program | None = None   # what predict used last
        self._stepper: _core.Program | None = None     # what forward used last

    def __getstate__(self) -> dict[str, Any]:
        derived = {"in_use", "_programs", "workspace", "_pending", "_parameters", "_gradients", "_predictor", "_stepper", "_flat_gradients"}
        return {key: value for key, value in self.__dict__.items() if key not in derived} | {"optimizer": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        parameters = self._flat_parameters
        self._flat_parameters = arrays.aligned_zeros(parameters.size, self._dtype)
        self._flat_parameters[...] = parameters
        self._flat_gradients = arrays.aligned_zeros(parameters.size, self._dtype)
        self._reset()

    # ---- shapes and parameters -----------------------------------------------------------------------------------------------------------

    @property
    def dtype(self) -> np.dtype:
        """float32 or float64, of parameters, inputs and results."""
        return self._dtype

    @property
    def inputs(self) -> int | None:
        """Features of the input; None when no layer fixes them."""
        return self.nodes[0].width or None

    def output_width(self, inputs: int) -> int:
        """Features of the output for this many of the input."""
        return self.nodes[self.output].width or inputs

    @property
    def flat_parameters(self) -> np.ndarray:
        """All parameters as one 1-D contiguous array: the memory of `parameters`, tensors padded with zeros to 64 bytes."""
        return self._flat_parameters

    @property
    def flat_gradients(self) -> np.ndarray:
        """All gradients, laid out as `flat_parameters`."""
        return self._flat_gradients

    @property
    def parameters(self) -> Mapping[str, np.ndarray]:
        """Name -> writable view; names as in torch.nn.Sequential's state_dict. Nothing is copied."""
        return self._parameters

    @property
    def gradients(self) -> Mapping[str, np.ndarray]:
        """Name -> writable view of what the last `backward` filled."""
        return self._gradients

    def views(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """An array laid out as `flat_parameters`, by parameter name."""
        return {name: flat[at : at + int(np.prod(shape))].reshape(shape) for name, (at, shape) in self._shapes.items()}

    def slots(self) -> list[tuple[int, int, float, float]]:
        """(offset, size, factor on the rate, factor on the decay) for the update; neighbours with equal factors are one slot."""
        return [(0, self._flat_parameters.size, 1.0, 1.0)] if self._flat_parameters.size else []

    def parameters_changed(self) -> None:
        """The values that `backward` would use are no longer those of these parameters."""
        self._pending = None

    def state_dict(self) -> dict[str, np.ndarray]:
        """Name -> copy of the parameter."""
        return {name: view.copy() for name, view in self._parameters.items()}

    def load_state_dict(self, mapping: Mapping[str, Any]) -> None:
        """Writes parameters in place. Values may be anything np.asarray takes. ValueError names what is missing, unexpected, misshaped or not
        finite as given; nothing is written then."""
        if not isinstance(mapping, Mapping):
            raise TypeError(f"mapping must be a mapping of names to arrays, got {arrays.describe(mapping)}")
        if missing := self._shapes.keys() - mapping.keys():
            raise ValueError(f"mapping lacks {', '.join(sorted(missing))}; expected {', '.join(self._shapes)}")
        if extra := mapping.keys() - self._shapes.keys():
            raise ValueError(f"mapping has unexpected {', '.join(sorted(map(str, extra)))}; expected {', '.join(self._shapes)}")
        given = {}
        for name, (_, shape) in self._shapes.items():
            given[name] = arrays.real(f"mapping[{name!r}]", mapping[name])
            if given[name].shape != shape:
                raise ValueError(f"mapping[{name!r}] must have shape {shape}, got {arrays.describe(given[name])}")
            given[name] = arrays.convert(given[name], self._dtype)
        for name, value in given.items():
            self._parameters[name][...] = value
        self.parameters_changed()

    def astype(self, dtype: Any) -> Model:
        """A copy of this model in another dtype."""
        other = object.__new__(type(self))
        state = self.__getstate__()
        values = self.state_dict()
        other.__dict__.update(state)
        other._dtype = arrays.dtype_of(dtype)
        other._lay_out()
        other._reset()
        other.load_state_dict(values)
        return other

    # ---- running -------------------------------------------------------------------------------------------------------------------------

    def compile(self, *, capacity: int, training: bool, inputs: int, output: int | None = None, input_gradient: bool = False) -> _core.Program:
        """A program for batches of up to `capacity` rows of `inputs` features; the one made before where it is the same."""
        key = capacity, training, inputs, output, input_gradient
        if key not in self._programs:
            nodes = self.nodes
            if self.inputs is None:
                nodes = tuple(Node(node.layer, node.reads, inputs) for node in nodes)
            if len(self._programs) >= PROGRAMS_KEPT:
                self._programs.clear()
            self._programs[key] = compiler.compile_graph(
                nodes, self.output if output is None else output, dtype=self._dtype, capacity=capacity, training=training,
                places=self._places, parameters=self._flat_parameters.size, input_gradient=input_gradient)
        return self._programs[key]

    def predict(self, x: Any) -> np.ndarray:
        """f(x): (B, in) -> (B, out), in evaluation mode, without keeping anything; a fresh array. NaN and infinities propagate.

        Row i of the result does not depend on the other rows, bit for bit. Safe from several threads at once. ValueError or TypeError for an x
        that is not a matrix of numbers of the right width.
        """
        if self._predictor is not None:
            out = self._predictor.predict(x, self._flat_parameters)
            if out is not None:
                return out
        x = arrays.matrix("x", x, self._dtype, columns=self.inputs)
        predictor = self._predictor
        if predictor is None or predictor.inputs != x.shape[1]:
            predictor = self._predictor = self.compile(capacity=compiler.PREDICT_ROWS, training=False, inputs=x.shape[1])
        return predictor.predict(x, self._flat_parameters)

    def forward(self, x: Any, training: bool = True) -> np.ndarray:
        """f(x) as a fresh array, keeping what `backward` needs. `training` switches dropout on."""
        x = arrays.matrix("x", x, self._dtype, columns=self.inputs)
        training = arrays.flag("training", training)
        program = self._stepper
        if program is None or program.inputs != x.shape[1] or program.capacity < len(x):
            program = self._stepper = self.compile(capacity=max(len(x), 1), training=True, inputs=x.shape[1], input_gradient=True)
        out = program.forward(self._flat_parameters, x, training, self.seed, self.steps)
        self._pending = program
        self._pending_shape = out.shape
        self.steps += training
        return out

    def backward(self, dout: Any) -> np.ndarray:
        """Fills `gradients` from dL/df (B, out) of the last `forward` (equations BP1 to BP4); returns dL/dx (B, in), fresh.

        Overwrites: there is nothing to zero. RuntimeError without a forward, or after the parameters were stepped.
        """
        if self._pending is None:
            raise RuntimeError("backward needs a forward before it (and no step in between)")
        rows, columns = self._pending_shape
        dout = arrays.matrix("dout", dout, self._dtype, columns=columns, rows=rows)
        return self._pending.backward(self._flat_parameters, self._flat_gradients, dout)

    def fit(self, x: Any, y: Any, *, loss: Any, optimizer: Optimizer, epochs: int = 1, batch_size: int = 32, shuffle: bool = True, seed: Any = None,
            sample_weight: Any = None, validation_data: Any = None, metrics: Iterable[str | Callable[..., float]] = (), callbacks: Iterable[Any] = (),
            clip_norm: float | None = None, progress: Any = "auto") -> History:
        """Trains by minibatch gradient descent (MATH.md S20-S22) and returns a History.

        x (n, in), y: what the loss wants, n rows. batch_size above n means n; the last batch is smaller, and its mean is over its own rows. One
        permutation per epoch from `seed` (int, numpy Generator or None). sample_weight (n) not negative: the batch's loss is Σ w l / Σ w.
        validation_data (x, y[, sample_weight]) is evaluated after each epoch. metrics: "accuracy" or callables (target, prediction) -> float.
        clip_norm: the gradient's global 2-norm is scaled down to it. progress: True, False or "auto" (a bar when stderr is a terminal).

        Raises TypeError and ValueError for bad input before anything is changed (NaN and infinities in the data with row and column),
        FloatingPointError when the loss or a parameter turns non-finite, leaving the last finite parameters, RuntimeError when the model is being
        trained already or the optimizer belongs to another. Ctrl-C arrives between two steps.
        """
        from . import training

        return training.fit(self, x, y, loss=loss, optimizer=optimizer, epochs=epochs, batch_size=batch_size, shuffle=shuffle, seed=seed,
                            sample_weight=sample_weight, validation_data=validation_data, metrics=metrics, callbacks=callbacks, clip_norm=clip_norm,
                            progress=progress)

    def evaluate(self, x: Any, y: Any, *, loss: Any, metrics: Iterable[str | Callable[..., float]] = (), sample_weight: Any = None) -> dict[str, float]:
        """{"loss": ..., metric: ...} over the whole of x, in evaluation mode."""
        from . import training

        return training.evaluate(self, x, y, loss=loss, metrics=metrics, sample_weight=sample_weight)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes architecture and parameters to one safetensors file, atomically and durably. See fastbp.io."""
        from . import io

        io.save(self, path)


class Sequential(Model):
    """A chain: the output of each layer is the input of the next.

    fb.Sequential(fb.Linear(784, 256), fb.ReLU(), fb.Linear(256, 10), dtype="float32", seed=0)

    dtype "float32" or "float64"; seed: int, numpy Generator or None, for initial parameters and dropout. A layer that stands twice shares its
    parameters. Raises ValueError for no layers or widths that do not fit, TypeError for what is no layer, MemoryError for sizes that cannot be had.
    """

    def __init__(self, *layer: Layer, dtype: Any = "float32", seed: Any = None):
        if not layer:
            raise ValueError("Sequential needs at least one layer, got none")
        for i, item in enumerate(layer):
            if not isinstance(item, Layer):
                hint = " (make an instance: Layer())" if isinstance(item, type) else ""
                raise TypeError(f"layer {i} must be a layer such as fb.Linear(4, 2), got {arrays.describe(item)}{hint}")
        self.layers = layer
        first = next((item for item in layer if item.operation == "dense"), None)
        width = first.in_features if first is not None else None
        nodes, names = [Node(None, (), width or 0)], {}
        for i, item in enumerate(layer):
            try:
                width = item.width(width)
            except ValueError as error:
                raise ValueError(f"layer {i} does not fit the layer before it: {error}") from None
            nodes.append(Node(item, (i,), width or 0))
            if item.operation == "dense":
                names.setdefault(item, str(i))
        super().__init__(nodes, names, dtype, seed)

    def config(self) -> dict[str, Any]:
        """Architecture and state beside the parameters, as plain data: what a model file holds."""
        shared = {id(item): i for i, item in reversed(list(enumerate(self.layers)))}
        return {"kind": "Sequential", "dtype": self.dtype.name, "seed": self.seed, "steps": self.steps,
                "layers": [{"kind": type(item).__name__} | item.config() | ({"same_as": shared[id(item)]} if shared[id(item)] != i else {})
                           for i, item in enumerate(self.layers)]}

    def summary(self) -> str:
        """A table of layers, output shapes and parameter counts."""
        rows = []
        for i, (item, node) in enumerate(zip(self.layers, self.nodes[1:], strict=True)):
            own = {name: shape for name, (_, shape) in self._shapes.items() if name.split(".")[0] == str(i)}
            arguments = ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in item.config().values()
                                  if isinstance(value, float)) if item.operation != "dense" else f"{item.in_features}, {item.out_features}"
            rows.append((str(i), f"{type(item).__name__}({arguments})", f"(B, {node.width or 'in'})", f"{sum(int(np.prod(s)) for s in own.values()):,}" if own else ""))
        header = ("", "layer", "output", "parameters")
        widths = [max(len(row[c]) for row in (header, *rows)) for c in range(4)]
        line = lambda row: f"{row[0]:>{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:<{widths[2]}}  {row[3]:>{widths[3]}}".rstrip()
        count = sum(int(np.prod(shape)) for _, shape in self._shapes.values())
        size = count * self.dtype.itemsize
        human = f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"
        return "\n".join([f"Sequential, {self.dtype.name}, {self.inputs or 'any number of'} features in", line(header), *map(line, rows),
                          f"{count:,} parameters, {human}"])

    def __repr__(self) -> str:
        return f"Sequential({', '.join(map(repr, self.layers))}, dtype={self.dtype.name!r})"


def model_from_config(config: Mapping[str, Any]) -> Model:
    """The model that `config()` describes, with initial parameters. ValueError for an unknown kind, TypeError and ValueError as the constructors."""
    if config.get("kind") != "Sequential":
        raise ValueError(f"kind must be 'Sequential', got {config.get('kind')!r}")
    chain: list[Layer] = []
    for item in config["layers"]:
        arguments = dict(item)
        kind, same_as = arguments.pop("kind"), arguments.pop("same_as", None)
        if same_as is not None:
            chain.append(chain[arrays.integer("same_as", same_as, least=0)])
            continue
        if kind not in KINDS:
            raise ValueError(f"layer kind must be one of {', '.join(KINDS)}, got {kind!r}")
        chain.append(KINDS[kind](**arguments))
    model = Sequential(*chain, dtype=config["dtype"], seed=0)
    model.seed, model.steps = _counter("seed", config["seed"]), _counter("steps", config["steps"])
    return model


def _counter(name: str, value: Any) -> int:
    """An integer that fits 64 bits without a sign."""
    if arrays.integer(name, value, least=0) >= 2**64:
        raise ValueError(f"{name} must be below 2**64, got {value}")
    return int(value)
