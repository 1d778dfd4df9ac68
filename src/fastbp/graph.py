"""Models: a graph of layers, its parameters in one flat array, and what can be done with them.

`Sequential` is the chain. Parameters lie row-major in one flat array, gradients in another of the same layout, each tensor at a multiple of
64 bytes; `parameters` and `gradients` are views.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _core, arrays, compiler
from .compiler import Node
from .runtime import InUse
from .symbols import KINDS, Input, Layer, Pick, Symbol, Transposed
from .workspace import Workspace

if TYPE_CHECKING:
    from .optim import Optimizer
    from .trace import Trace
    from .training import History


PROGRAMS_KEPT = 8


class Model:
    """A graph with parameters, from the symbols given to it to the symbols that come out::

        x = fb.Input(8)
        h = fb.ReLU()(fb.Linear(8, 8)(x))
        model = fb.Model(inputs=x, outputs=fb.Linear(8, 1)(h + x))

    inputs, outputs: one symbol or a list; with a list `predict`, `forward` and `backward` take and return lists. dtype "float32" or "float64";
    seed: int, numpy Generator or None, for initial parameters and dropout. A layer used twice shares its parameters, and their gradient is the sum
    (docs/by-hand/chain-rule.md). Not safe for simultaneous training from several threads (RuntimeError), safe for simultaneous `predict`. Raises TypeError for what
    is no symbol, ValueError for inputs that are missing, unused or given twice and for names given twice, MemoryError for sizes that cannot be had.
    """

    def __init__(self, inputs: Symbol | Sequence[Symbol], outputs: Symbol | Sequence[Symbol], *, dtype: Any = "float32", seed: Any = None):
        given, wanted = _symbols("inputs", inputs), _symbols("outputs", outputs)
        order = _needed(given, wanted)
        self._lists = not isinstance(inputs, Symbol), not isinstance(outputs, Symbol)   # whether several are taken, given
        self._outputs = wanted
        self._symbols = [*given, *(symbol for symbol in order if symbol not in given)]
        input_widths = [symbol.width for symbol in given]

        nodes, place = [Node(None, (), sum(input_widths))], {}   # all inputs are columns of one
        for symbol, at in zip(given, itertools.accumulate(input_widths, initial=0)):
            place[symbol] = 0
            if len(given) > 1:
                place[symbol] = len(nodes)
                nodes.append(Node(Pick(at, symbol.width), (0,), symbol.width))
        for symbol in self._symbols[len(given) :]:
            place[symbol] = len(nodes)
            nodes.append(Node(symbol.layer, tuple(place[read] for read in symbol.reads), symbol.width))
        self._place, self._input_widths = place, input_widths
        self._set_up(nodes, [place[symbol] for symbol in wanted], _name_layers(self._layers()), dtype, seed)
        for source in dict.fromkeys(symbol.source for symbol in self._symbols if symbol.source is not None):
            self._copy_parameters(source)

    def _set_up(self, nodes: list[Node], outputs: Sequence[int], names: Mapping[Layer, str], dtype: Any, seed: Any) -> None:
        self.nodes = tuple(nodes)
        self.outputs = tuple(outputs)   # which of `nodes` are
        self._categories = _categories(nodes)
        self._names = dict(names)
        self._dtype = arrays.dtype_of(dtype)
        rng = arrays.generator(seed)
        self.seed = int(rng.integers(2**63)) if seed is None or isinstance(seed, np.random.Generator) else _counter("seed", seed)
        self.steps = 0   # training passes made: what dropout's bits depend on beside the seed
        self.optimizer: Optimizer | None = None   # the one of the running fit
        for _, _, count in self._categories:
            if count > 2 ** (np.finfo(self._dtype).nmant + 1):
                raise ValueError(f"num_embeddings must be at most 2**{np.finfo(self._dtype).nmant + 1} in a {self._dtype} model, got {count}")
        self._lay_out()
        self._reset()
        for layer, name in self._names.items():
            for part in layer.shapes():
                self._tensors[_full_name(name, part)][...] = layer.initial(part, rng)

    def _lay_out(self) -> None:
        """Offsets of every parameter in the flat arrays, and the arrays."""
        unit = arrays.ALIGNMENT // self._dtype.itemsize
        self._shapes: dict[str, tuple[int, tuple[int, ...]]] = {}   # name -> offset, shape
        self._places: dict[Layer, dict[str, int]] = {}   # layer -> the offset of each part
        self._statistics: set[str] = set()
        size = 0
        for layer, name in self._names.items():
            at = {}
            for part, shape in layer.shapes().items():
                at[part] = size
                self._shapes[_full_name(name, part)] = size, shape
                if part in layer.statistics:
                    self._statistics.add(_full_name(name, part))
                size += -(-math.prod(shape) // unit) * unit
            self._places[layer] = at | ({"weight": self._places[layer.base]["weight"]} if isinstance(layer, Transposed) else {})
        self._flat_parameters = arrays.aligned_zeros(size, self._dtype)
        self._flat_gradients = arrays.aligned_zeros(size, self._dtype)

    def _copy_parameters(self, other: Model) -> None:
        """Takes the values of the layers that both have."""
        for layer, name in self._names.items():
            for part in layer.shapes() if layer in other._names else ():
                self._tensors[_full_name(name, part)][...] = other._tensors[_full_name(other._names[layer], part)]

    def _reset(self) -> None:
        """What is derived or belongs to this process: programs, views, marks."""
        self.in_use = InUse()
        self._programs: dict[Any, _core.Program] = {}
        self._compiled: dict[Any, tuple[Any, ...]] = {}   # what they were made of
        self.workspace = Workspace()
        self._pending: _core.Program | None = None   # holds the batch that backward may be called for
        self._transposed = {_full_name(name, "weight") for layer, name in self._names.items() if layer.transposed}
        self._tensors = MappingProxyType(self._views(self._flat_parameters, self._shapes))
        self._parameters = MappingProxyType(self.views(self._flat_parameters))
        self._gradients = MappingProxyType(self.views(self._flat_gradients))
        self._predictor: _core.Program | None = None   # what predict used last
        self._stepper: _core.Program | None = None     # what forward used last

    def __getstate__(self) -> dict[str, Any]:
        derived = {"in_use", "_programs", "_compiled", "workspace", "_pending", "_tensors", "_parameters", "_gradients", "_predictor", "_stepper", "_flat_gradients", "_place",
                   "_transposed"}
        number = {symbol: i for i, symbol in enumerate(self._symbols)}   # numbers instead of references: graphs may be deep
        flat = {"_symbols": [(symbol.layer, [number[read] for read in symbol.reads], symbol.width, self._place[symbol]) for symbol in self._symbols],
                "_outputs": [number[symbol] for symbol in self._outputs]}
        return {key: value for key, value in self.__dict__.items() if key not in derived} | flat | {"optimizer": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._restore(state)
        parameters = self._flat_parameters
        self._flat_parameters = arrays.aligned_zeros(parameters.size, self._dtype)
        self._flat_parameters[...] = parameters
        self._flat_gradients = arrays.aligned_zeros(parameters.size, self._dtype)
        self._reset()

    def _restore(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._symbols, self._place = [], {}
        for layer, reads, width, place in state["_symbols"]:
            self._symbols.append(Symbol(layer, tuple(self._symbols[read] for read in reads), width))
            self._place[self._symbols[-1]] = place
        self._outputs = [self._symbols[i] for i in state["_outputs"]]

    # ---- nodes as people see them --------------------------------------------------------------------------------------------------------

    @property
    def symbols(self) -> Sequence[Symbol]:
        """The nodes that the model was made of, inputs first; a Sequential has none that anybody has seen."""
        return self._symbols

    @property
    def places(self) -> list[int]:
        """Which of `nodes` people see: those of `symbols`, or all of a chain."""
        return [self._place[symbol] for symbol in self._symbols] or list(range(len(self.nodes)))

    def layer_name(self, layer: Layer | None) -> str:
        """What a layer's parameters are called; "" for one that has none."""
        return self._names.get(layer, "") if layer is not None else ""

    # ---- shapes and parameters -----------------------------------------------------------------------------------------------------------

    @property
    def dtype(self) -> np.dtype:
        """float32 or float64, of parameters, inputs and results."""
        return self._dtype

    @property
    def inputs(self) -> int | None:
        """Features of the input; None when no layer fixes them."""
        return self.nodes[0].width or None

    def matrix(self, name: str, x: Any) -> np.ndarray:
        """The input as one matrix (B, in) of the model's dtype: several inputs side by side. Raises as arrays.matrix, for lists that do not fit, and
        for columns of categories that hold anything else."""
        if not self._lists[0]:
            joined = arrays.matrix(name, x, self._dtype, columns=self.inputs)
        elif not isinstance(x, list | tuple) or len(x) != len(self._input_widths):
            raise ValueError(f"{name} must be a list of {len(self._input_widths)} matrices, got {arrays.describe(x)}")
        else:
            parts = [arrays.matrix(f"{name}[{i}]", part, self._dtype, columns=width) for i, (part, width) in enumerate(zip(x, self._input_widths, strict=True))]
            for i, part in enumerate(parts):
                if len(part) != len(parts[0]):
                    raise ValueError(f"{name}[{i}] must have as many rows as {name}[0], {len(parts[0])}, got {len(part)}")
            joined = np.ascontiguousarray(np.hstack(parts)) if len(parts) > 1 else parts[0]
        for at, end, count in self._categories:
            numbers = joined[:, at:end]
            wrong = ~((numbers >= 0) & (numbers < count) & (numbers == np.floor(numbers)))
            if wrong.any():
                row, column = np.argwhere(wrong)[0]
                raise ValueError(f"{name} must hold categories from 0 to {count - 1} where an Embedding reads it, got {numbers[row, column]:g} in row {row}, "
                                 f"column {at + column}")
        return joined

    @property
    def category_columns(self) -> set[int]:
        """Columns of the input that hold categories instead of quantities."""
        return {column for at, end, _ in self._categories for column in range(at, end)}

    @property
    def least_rows(self) -> int:
        """Rows that a training batch needs: two for batch statistics, else any number will do."""
        return 2 if any(node.layer is not None and node.layer.operation == "batchnorm" for node in self.nodes) else 0

    @property
    def output_widths(self) -> list[int] | None:
        """Features of each output of a model that was made with a list of outputs, else None."""
        return [self.nodes[output].width for output in self.outputs] if self._lists[1] else None

    @property
    def flat_parameters(self) -> np.ndarray:
        """All parameters in one 1-D contiguous array, the memory of `parameters`, tensors padded with zeros to 64 bytes."""
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

    @property
    def tensors(self) -> Mapping[str, np.ndarray]:
        """Name -> writable view of the parameters and of what training passes measure (running statistics): what `state_dict` copies."""
        return self._tensors

    def views(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """An array laid out as `flat_parameters`, by parameter name."""
        return self._views(flat, (name for name in self._shapes if name not in self._statistics))

    def _views(self, flat: np.ndarray, names: Iterable[str]) -> dict[str, np.ndarray]:
        return {name: flat[at : at + math.prod(shape)].reshape(shape, order="F" if name in self._transposed else "C")
                for name in names for at, shape in (self._shapes[name],)}

    def slots(self, decay: Callable[[str], float] = lambda name: 1.0) -> list[tuple[int, int, float, float]]:
        """(offset, size, factor on the rate, factor on the decay) for the update; neighbours with equal factors are one slot. The rate of what
        is not trained is 0. decay: the factor for a parameter's name."""
        slots: list[tuple[int, int, float, float]] = []
        ends = [at for at, _ in self._shapes.values()][1:] + [self._flat_parameters.size]
        for (name, (at, _)), end in zip(self._shapes.items(), ends, strict=True):
            factors = (0.0, 0.0) if name in self._statistics else (1.0, decay(name))
            if slots and slots[-1][2:] == factors:
                at = slots.pop()[0]
            slots.append((at, end - at, *factors))
        return slots

    def parameters_changed(self) -> None:
        """The values that `backward` would use are no longer those of these parameters."""
        self._pending = None

    def state_dict(self) -> dict[str, np.ndarray]:
        """Name -> copy of the parameter, or of the running statistic."""
        return {name: view.copy() for name, view in self._tensors.items()}

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
            self._tensors[name][...] = value
        self.parameters_changed()

    def astype(self, dtype: Any) -> Model:
        """A copy of this model in another dtype."""
        other = object.__new__(type(self))
        state = self.__getstate__()
        values = self.state_dict()
        other._restore(state)
        other._dtype = arrays.dtype_of(dtype)
        other._lay_out()
        other._reset()
        other.load_state_dict(values)
        return other

    def _blank(self) -> Model:
        """A model of the same layers, whose parameters are all 0; the two share what the compiler makes of them."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._flat_parameters, other._flat_gradients = (arrays.aligned_zeros(self._flat_parameters.size, self._dtype) for _ in range(2))
        other._reset()
        other._compiled = self._compiled
        return other

    def __call__(self, node: Symbol | Sequence[Symbol]) -> Any:
        """The symbols of this model's outputs for other symbols as inputs: its layers, shared. A model made of them begins with this one's
        present parameters and has its own."""
        given = _symbols("node", node)
        if [symbol.width for symbol in given] != self._input_widths:
            raise ValueError(f"node must have the features {self._input_widths} of the model's inputs, got {[symbol.width for symbol in given]}")
        made: list[Symbol] = []   # one per node of this model
        picks = iter(given)
        for i, node_ in enumerate(self.nodes):
            if i == 0:
                made.append(given[0])
            elif isinstance(node_.layer, Pick):
                made.append(next(picks))
            else:
                made.append(Symbol(node_.layer, tuple(made[read] for read in node_.reads), node_.width, source=self))
        results = [made[output] for output in self.outputs]
        return results if self._lists[1] else results[0]

    # ---- running -------------------------------------------------------------------------------------------------------------------------

    def compile(self, *, capacity: int, training: bool, inputs: int, outputs: Sequence[int] | None = None, input_gradient: bool = False, keep: bool = False
                ) -> _core.Program:
        """A program for batches of up to `capacity` rows of `inputs` features; the one made before where it is the same."""
        outputs = self.outputs if outputs is None else tuple(outputs)
        key = capacity, training, inputs, outputs, input_gradient, keep
        if key not in self._programs:
            nodes = self.nodes
            if self.inputs is None:
                nodes = tuple(Node(node.layer, node.reads, inputs) for node in nodes)
            compiled = self._compiled.get(key)
            if compiled is None:
                compiled = compiler.compile_graph(
                    nodes, outputs, dtype=self._dtype, capacity=capacity, training=training,
                    places=self._places, parameters=self._flat_parameters.size, input_gradient=input_gradient, keep=keep)
            for kept, made in ((self._compiled, compiled), (self._programs, _core.Program(*compiled))):
                if len(kept) >= PROGRAMS_KEPT:
                    kept.clear()
                kept[key] = made
        return self._programs[key]

    def predict(self, x: Any, outputs: Symbol | Sequence[Symbol] | None = None) -> Any:
        """f(x): (B, in) -> (B, out), in evaluation mode, without keeping anything; a fresh array. NaN and infinities propagate.

        outputs: other nodes of the graph to compute instead, one or a list; only what they need is computed. Row i of the result does not depend on the other rows, bit for bit. Safe from several threads at once. ValueError or TypeError for an x
        that is not a matrix of numbers of the right width, and for outputs that are no nodes of this model.
        """
        if outputs is not None:
            return self._predict_nodes(x, outputs)
        if self._predictor is not None:
            out = self._predictor.predict(x, self._flat_parameters)
            if out is not None:
                return out
        return self._as_given(self.predict_matrix(self.matrix("x", x)))

    def predict_matrix(self, x: np.ndarray) -> Any:
        """`predict` for an x that `matrix` has made; a list for several outputs."""
        predictor = self._predictor
        if predictor is None or predictor.inputs != x.shape[1]:
            predictor = self.compile(capacity=compiler.predict_rows(self.nodes), training=False, inputs=x.shape[1])
            if self._lists == (False, False) and not self._categories:
                self._predictor = predictor   # arrays go to it at once
        return predictor.predict(x, self._flat_parameters)

    def _predict_nodes(self, x: Any, outputs: Symbol | Sequence[Symbol]) -> Any:
        x, wanted = self.matrix("x", x), _symbols("outputs", outputs)
        for symbol in wanted:
            if symbol not in self._place:
                raise ValueError(f"outputs: {symbol!r} is not a node of this model")
        program = self.compile(capacity=compiler.predict_rows(self.nodes), training=False, inputs=x.shape[1], outputs=[self._place[symbol] for symbol in wanted])
        results = program.predict(x, self._flat_parameters)
        return [results] if len(wanted) == 1 and not isinstance(outputs, Symbol) else results

    def _as_given(self, results: Any) -> Any:
        """What a program returns, in a list if the outputs were."""
        return [results] if self._lists[1] and len(self.outputs) == 1 else results

    def forward(self, x: Any, training: bool = True) -> Any:
        """f(x) as a fresh array, keeping what `backward` needs. `training` switches dropout on."""
        x = self.matrix("x", x)
        training = arrays.flag("training", training)
        if training and len(x) < 2 and len(x) < self.least_rows:   # a large batch asks nobody
            raise ValueError(f"x must have at least {self.least_rows} rows to train BatchNorm1d, got {arrays.describe(x)}")
        program = self._stepper
        if program is None or program.inputs != x.shape[1] or program.capacity < len(x):
            program = self._stepper = self.compile(capacity=max(len(x), 1), training=True, inputs=x.shape[1], input_gradient=True)
        out = program.forward(self._flat_parameters, x, training, self.seed, self.steps)
        self._pending = program
        self._pending_rows = len(x)
        self.steps += training
        return self._as_given(out)

    def backward(self, dout: Any) -> Any:
        """Fills `gradients` from dL/df (B, out) of the last `forward` (equations BP1 to BP4); returns dL/dx (B, in), fresh.

        Overwrites: there is nothing to zero. RuntimeError without a forward, or after the parameters were stepped.
        """
        if self._pending is None:
            raise RuntimeError("backward needs a forward before it (and no step in between)")
        rows, widths = self._pending_rows, self._pending.widths
        if not self._lists[1]:
            dout = arrays.matrix("dout", dout, self._dtype, columns=widths[0], rows=rows)
        elif not isinstance(dout, list | tuple) or len(dout) != len(widths):
            raise ValueError(f"dout must be a list of {len(widths)} matrices, got {arrays.describe(dout)}")
        else:
            dout = [arrays.matrix(f"dout[{i}]", part, self._dtype, columns=width, rows=rows) for i, (part, width) in enumerate(zip(dout, widths, strict=True))]
        dx = self._pending.backward(self._flat_parameters, self._flat_gradients, dout)
        return _apart(dx, self._input_widths) if self._lists[0] else dx

    def jacobian(self, x: Any) -> np.ndarray:
        """d f(x)_o / d x_i for every row: (B, out, in), in evaluation mode, by one backward pass per output. `gradients` stay as they are. With
        several inputs or outputs their features count one after the other (docs/by-hand S5, S6)."""
        x = self.matrix("x", x)
        program = self.compile(capacity=max(len(x), 1), training=True, inputs=x.shape[1], input_gradient=True)
        self._pending = None
        program.forward(self._flat_parameters, x, False, self.seed, self.steps)
        gradients = arrays.aligned_zeros(self._flat_parameters.size, self._dtype)
        douts = [np.zeros((len(x), width), self._dtype) for width in program.widths]
        rows = []
        for dout in douts:
            for column in dout.T:
                column[:] = 1
                rows.append(program.backward(self._flat_parameters, gradients, douts if len(douts) > 1 else dout))
                column[:] = 0
        return np.stack(rows, axis=1)

    def fit(self, x: Any, y: Any, *, loss: Any, optimizer: Optimizer, epochs: int = 1, batch_size: int = 32, shuffle: bool = True, seed: Any = None,
            sample_weight: Any = None, validation_data: Any = None, metrics: Iterable[str | Callable[..., float]] = (), callbacks: Iterable[Any] = (),
            clip_norm: float | None = None, progress: Any = "auto", loss_weights: Sequence[float] | None = None) -> History:
        """Trains by minibatch gradient descent (docs/by-hand S20-S22) and returns a History.

        x, y
            (n, in), and n rows of what the loss wants
        batch_size
            above n means n; the last batch is smaller, and its mean is over its own rows
        shuffle, seed
            one permutation per epoch from `seed` (int, numpy Generator or None). Where nothing is evaluated or called between epochs, permutations
            and learning rates of some 25 ms of training are drawn at once: after an error or Ctrl-C a Generator may be ahead by as many
        sample_weight
            one per row, not negative: the batch's loss is Σ w l / Σ w
        validation_data
            (x, y[, sample_weight]), evaluated after each epoch
        metrics
            "accuracy" or callables (target, prediction) -> float
        callbacks
            objects with methods that are called between epochs, see fastbp.callbacks
        clip_norm
            the gradient's global 2-norm is scaled down to it
        progress
            True, False or "auto" (a bar when stderr is a terminal)
        loss_weights
            a model with a list of outputs takes lists: y and loss, one per output, and loss_weights (1 each if None); the loss is Σ weight · loss

        Raises TypeError and ValueError for bad input before anything is changed (NaN and infinities in the data with row and column),
        FloatingPointError when the loss or a parameter turns non-finite, leaving the last finite parameters, RuntimeError when the model is being
        trained already or the optimizer belongs to another. Ctrl-C arrives between two steps.
        """
        from . import training

        return training.fit(self, x, y, loss=loss, optimizer=optimizer, epochs=epochs, batch_size=batch_size, shuffle=shuffle, seed=seed,
                            sample_weight=sample_weight, validation_data=validation_data, metrics=metrics, callbacks=callbacks, clip_norm=clip_norm,
                            progress=progress, loss_weights=loss_weights)

    def evaluate(self, x: Any, y: Any, *, loss: Any, metrics: Iterable[str | Callable[..., float]] = (), sample_weight: Any = None,
                 loss_weights: Sequence[float] | None = None) -> dict[str, float]:
        """{"loss": ..., metric: ...} over the whole of x, in evaluation mode. Lists of outputs as in `fit`."""
        from . import training

        return training.evaluate(self, x, y, loss=loss, metrics=metrics, sample_weight=sample_weight, loss_weights=loss_weights)

    def trace(self, x: Any, y: Any, loss: Any, *, training: bool = False, loss_weights: Sequence[float] | None = None) -> Trace:
        """One forward and backward pass in which every node keeps its value and its delta, dL/dvalue: a table to look at (docs/by-hand S15, S19).

        x, y and loss as in `fit`; `training` switches dropout and batch statistics on. The model stays as it was, `gradients` included. Nothing is
        fused: the deltas are those of the formulas, by the same kernels. Raises as `fit` does.
        """
        from . import trace

        return trace.trace(self, x, y, loss, train=training, loss_weights=loss_weights)

    def draw(self, path: str | os.PathLike[str], trace: Trace | None = None) -> None:
        """Draws the graph, with shapes, to a file whose ending says the format ("net.svg", .png, .pdf); with a trace also values and deltas where they
        are few (extra: fastbp[plot]). TypeError for what is no trace, ValueError for one of another model or an ending that is not known."""
        from . import drawing

        drawing.draw(self, path, trace)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes architecture and parameters to one safetensors file, atomically and durably. See fastbp.io."""
        from . import io

        io.save(self, path)

    def config(self) -> dict[str, Any]:
        """Architecture and state beside the parameters, as plain data: what a model file holds."""
        layers = list(dict.fromkeys(layer.base if isinstance(layer, Transposed) else layer for layer in self._layers()))
        layers += [layer for layer in dict.fromkeys(self._layers()) if layer not in layers]
        described = [{"kind": type(layer).__name__} | layer.config() | ({"base": layers.index(layer.base)} if isinstance(layer, Transposed) else {})
                     for layer in layers]
        number = {symbol: i for i, symbol in enumerate(self._symbols)}
        inputs = len(self._input_widths)
        return {"kind": "Model", "dtype": self.dtype.name, "seed": self.seed, "steps": self.steps, "inputs": self._input_widths, "layers": described,
                "lists": list(self._lists),
                "nodes": [[layers.index(symbol.layer), [number[read] for read in symbol.reads]] for symbol in self._symbols[inputs:]],
                "outputs": [number[symbol] for symbol in self._outputs]}

    def _layers(self) -> list[Layer]:
        return [symbol.layer for symbol in self._symbols if symbol.layer is not None]

    def summary(self) -> str:
        """A table of nodes, what they read, their shapes and parameter counts."""
        number, counted, rows = {symbol: i for i, symbol in enumerate(self._symbols)}, set(), []
        for i, symbol in enumerate(self._symbols):
            own = 0
            if symbol.layer in self._names and symbol.layer not in counted:
                counted.add(symbol.layer)
                own = _count(symbol.layer)
            rows.append((str(i), "Input" if symbol.layer is None else self._names.get(symbol.layer) or repr(symbol.layer),
                         " ".join(str(number[read]) for read in symbol.reads), f"(B, {symbol.width})", f"{own:,}" if own else ""))
        return _table(self, ("", "node", "reads", "output", "parameters"), rows, f"Model, {self.dtype.name}, inputs {self._input_widths}")

    def __repr__(self) -> str:
        return f"Model(inputs={self._input_widths}, outputs={[symbol.width for symbol in self._outputs]}, {len(self._symbols)} nodes, dtype={self.dtype.name!r})"


def _table(model: Model, header: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> str:
    """Text: title, columns of which the first and the last are numbers, the count of parameters."""
    widths = [max(len(row[c]) for row in (header, *rows)) for c in range(len(header))]
    count = sum(view.size for view in model.parameters.values())
    size = count * model.dtype.itemsize
    human = f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"

    def line(row: Sequence[str]) -> str:
        cells = (f"{cell:>{width}}" if c in (0, len(row) - 1) else f"{cell:<{width}}" for c, (cell, width) in enumerate(zip(row, widths, strict=True)))
        return "  ".join(cells).rstrip()

    return "\n".join([title, line(header), *map(line, rows), f"{count:,} parameters, {human}"])


def _count(layer: Layer) -> int:
    """Its parameters, those that are trained."""
    return sum(math.prod(shape) for part, shape in layer.shapes().items() if part not in layer.statistics)


def _categories(nodes: Sequence[Node]) -> list[tuple[int, int, int]]:
    """(first column, end, categories) of the input for each embedding; ValueError for one that reads something else."""
    found = []
    for node in nodes:
        if node.layer is not None and node.layer.operation == "embedding":
            source = nodes[node.reads[0]]
            if source.layer is not None and not isinstance(source.layer, Pick):
                raise ValueError(f"{node.layer!r} takes an input that holds categories, such as fb.Input(1), got what {source.layer!r} computes")
            at = 0 if source.layer is None else source.layer.at
            found.append((at, at + (source.width or 1), node.layer.num_embeddings))
    return found


def _apart(matrix: np.ndarray, widths: Sequence[int]) -> list[np.ndarray]:
    """A matrix per output, or input: columns of one that nobody else has."""
    return np.split(matrix, np.cumsum(widths)[:-1], axis=1)


def _full_name(name: str, part: str) -> str:
    return f"{name}.{part}" if part else name


def _symbols(name: str, value: Symbol | Sequence[Symbol]) -> list[Symbol]:
    """One symbol or several, as a list."""
    symbols = [value] if isinstance(value, Symbol) else list(value) if isinstance(value, list | tuple) else None
    if symbols is None or not all(isinstance(symbol, Symbol) for symbol in symbols):
        raise TypeError(f"{name} must be a node such as fb.Input(8), or a list of nodes, got {arrays.describe(value)}")
    if not symbols:
        raise ValueError(f"{name} must hold at least one node, got none")
    return symbols


def _needed(inputs: list[Symbol], outputs: list[Symbol]) -> list[Symbol]:
    """The symbols that the outputs need, in topological order; ValueError for inputs that are no inputs, missing, unused or given twice."""
    for symbol in inputs:
        if symbol.layer is not None:
            raise ValueError(f"inputs: {symbol!r} is computed, not an fb.Input")
    if len(set(inputs)) < len(inputs):
        raise ValueError("inputs: a node stands twice")
    found, pending = set(), list(outputs)
    while pending:
        symbol = pending.pop()
        if symbol not in found:
            found.add(symbol)
            pending.extend(symbol.reads)
    order = sorted(found, key=lambda symbol: symbol.serial)
    for symbol in order:
        if symbol.layer is None and symbol not in inputs:
            raise ValueError(f"inputs must hold every input that the outputs need: {symbol!r} is missing")
    for symbol in inputs:
        if symbol not in found:
            raise ValueError(f"inputs: no output needs {symbol!r}")
    return order


def _name_layers(layers: Iterable[Layer]) -> dict[Layer, str]:
    """The name of every layer with parameters: its own, else its kind and a number in order of first mention."""
    names: dict[Layer, str] = {}
    counts: dict[str, int] = {}
    for layer in layers:
        for item in ([layer.base] if isinstance(layer, Transposed) else []) + [layer]:
            if item in names or not (item.shapes() or isinstance(item, Transposed)):
                continue
            kind = {"dense": "linear"}.get(item.operation, item.operation)
            name = item.name
            if name is None:
                name = f"{kind}_{counts.get(kind, 0)}"
                counts[kind] = counts.get(kind, 0) + 1
            if name in names.values():
                raise ValueError(f"name: two layers are called {name!r}")
            names[item] = name
    return names


class Sequential(Model):
    """A chain, the output of each layer the input of the next::

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
        width = _first_width(layer)
        nodes, names = [Node(None, (), width or 0)], {}
        for i, item in enumerate(layer):
            try:
                width = item.width(width)
            except ValueError as error:
                raise ValueError(f"layer {i} does not fit the layer before it: {error}") from None
            nodes.append(Node(item, (i,), width or 0))
            if isinstance(item, Transposed) and item.base not in names:
                raise ValueError(f"layer {i} is the transpose of a layer that does not stand before it")
            if item.shapes() or isinstance(item, Transposed):
                names.setdefault(item, item.name or str(i))
        if len(set(names.values())) < len(names):
            raise ValueError(f"name: two layers are called the same, got {', '.join(names.values())}")
        self._lists, self._input_widths = (False, False), [nodes[0].width]
        self._symbols, self._outputs, self._place = [], [], {}   # nobody has seen any
        self._set_up(nodes, [len(nodes) - 1], names, dtype, seed)

    def config(self) -> dict[str, Any]:
        """Architecture and state beside the parameters, as plain data: what a model file holds."""
        shared = {id(item): i for i, item in reversed(list(enumerate(self.layers)))}
        return {"kind": "Sequential", "dtype": self.dtype.name, "seed": self.seed, "steps": self.steps,
                "layers": [{"kind": type(item).__name__} | item.config() | ({"base": shared[id(item.base)]} if isinstance(item, Transposed) else {})
                           | ({"same_as": shared[id(item)]} if shared[id(item)] != i else {})
                           for i, item in enumerate(self.layers)]}

    def summary(self) -> str:
        """A table of layers, output shapes and parameter counts."""
        rows = []
        for i, (item, node) in enumerate(zip(self.layers, self.nodes[1:], strict=True)):
            own = _count(item) if item not in self.layers[:i] else 0
            arguments = ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in item.config().values()
                                  if type(value) in (int, float)) or ", ".join(map(str, filter(None, (item.in_features, getattr(item, "out_features", None)))))
            rows.append((str(i), f"{type(item).__name__}({arguments})", f"(B, {node.width or 'in'})", f"{own:,}" if own else ""))
        return _table(self, ("", "layer", "output", "parameters"), rows, f"Sequential, {self.dtype.name}, {self.inputs or 'any number of'} features in")

    def __repr__(self) -> str:
        return f"Sequential({', '.join(map(repr, self.layers))}, dtype={self.dtype.name!r})"


def _first_width(layers: Sequence[Layer]) -> int | None:
    """Features of a chain's input: what its first layer that fixes a width says; None when there is none. An embedding before it makes several of one."""
    width = next((layer.in_features for layer in layers if layer.in_features is not None), None)
    first = next((layer for layer in layers if layer.in_features is not None or layer.operation == "embedding"), None)
    if first is not None and first.operation == "embedding":
        return (width or 0) // first.embedding_dim or 1
    return width


def model_from_config(config: Mapping[str, Any]) -> Model:
    """The model that `config()` describes, with initial parameters. ValueError for an unknown kind, TypeError and ValueError as the constructors."""
    makers = {"Sequential": _sequential_from_config, "Model": _graph_from_config}
    if config.get("kind") not in makers:
        raise ValueError(f"kind must be one of {', '.join(makers)}, got {config.get('kind')!r}")
    model = makers[config["kind"]](config)
    model.seed, model.steps = _counter("seed", config["seed"]), _counter("steps", config["steps"])
    return model


def _layer_from_config(item: Mapping[str, Any], layers: Sequence[Layer]) -> Layer:
    arguments = dict(item)
    kind = arguments.pop("kind")
    if kind not in KINDS:
        raise ValueError(f"layer kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if "base" in arguments:
        arguments["base"] = layers[arrays.integer("base", arguments["base"], least=0)]
    return KINDS[kind](**arguments)


def _sequential_from_config(config: Mapping[str, Any]) -> Model:
    chain: list[Layer] = []
    for item in config["layers"]:
        if (same_as := item.get("same_as")) is not None:
            chain.append(chain[arrays.integer("same_as", same_as, least=0)])
            continue
        chain.append(_layer_from_config({key: value for key, value in item.items() if key != "same_as"}, chain))
    return Sequential(*chain, dtype=config["dtype"], seed=0)


def _graph_from_config(config: Mapping[str, Any]) -> Model:
    layers: list[Layer] = []
    for item in config["layers"]:
        layers.append(_layer_from_config(item, layers))
    inputs = [Input(width) for width in config["inputs"]]
    symbols = list(inputs)
    for index, reads in config["nodes"]:
        layer, read = layers[arrays.integer("layer", index, least=0)], tuple(symbols[arrays.integer("read", i, least=0)] for i in reads)
        widths = [symbol.width for symbol in read]
        arity = {"binary": 2, "parameter": 0}.get(layer.operation, 1)
        if (len(read) != arity and layer.operation != "concat") or (layer.operation == "binary" and widths[0] != widths[1]):
            raise ValueError(f"{layer!r} cannot read {len(read)} nodes of {widths} features")
        if layer.operation == "concat":
            symbols.append(Symbol(layer, read, sum(widths)))
        elif layer.operation == "binary":
            symbols.append(Symbol(layer, read, widths[0]))
        elif layer.operation == "parameter":
            symbols.append(Symbol(layer, (), math.prod(layer.shapes()[""])))
        else:
            symbols.append(layer(read[0]))
    outputs = [symbols[arrays.integer("output", i, least=0)] for i in config["outputs"]]
    lists = [arrays.flag("lists", several) for several in config["lists"]]
    return Model(inputs if lists[0] else inputs[0], outputs if lists[1] else outputs[0], dtype=config["dtype"], seed=0)


def _counter(name: str, value: Any) -> int:
    """An integer that fits 64 bits without a sign."""
    if arrays.integer(name, value, least=0) >= 2**64:
        raise ValueError(f"{name} must be below 2**64, got {value}")
    return int(value)
