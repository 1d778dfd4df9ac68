"""fit, evaluate, minibatches, History: everything that runs a program over a data set.

An epoch is native code: `fit` hands over the arrays, the order of the rows and the learning rates, and gets control back about every
25 ms (between whole steps) for signals, the progress bar and callbacks that ask for batches.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _core, arrays
from .losses import BCELoss, BCEWithLogitsLoss, CrossEntropyLoss, Loss
from .optim import Optimizer
from .workspace import Workspace

SLICE = 0.025   # seconds between two looks at signals


class History:
    """What `fit` reports. `history`: name -> one float per epoch ("loss", then "val_loss" and the metrics where asked for).

    "loss" and metrics are the values before each update, averaged over the rows of the epoch; weight decay is not part of the loss.
    Validation values are computed after each epoch.
    """

    def __init__(self) -> None:
        self.history: dict[str, list[float]] = {}

    def append(self, logs: dict[str, float]) -> None:
        """One epoch's values."""
        for name, value in logs.items():
            self.history.setdefault(name, []).append(value)

    def plot(self, ax: Any = None) -> Any:
        """Draws every curve over the epochs and returns the matplotlib axes (extra: fastbp[plot])."""
        if ax is None:
            import matplotlib.pyplot as plt

            ax = plt.figure(figsize=(7, 4), layout="constrained").subplots()
        other, colours = None, {}   # a curve and its validation share a colour
        for name, values in self.history.items():
            target = ax
            if not name.endswith("loss"):
                target = other = other or ax.twinx()
            target.plot(range(1, len(values) + 1), values, "--" if name.startswith("val_") else "-", label=name,
                        color=colours.setdefault(name.removeprefix("val_"), f"C{len(colours)}"))
        ax.set(xlabel="epoch", ylabel="loss")
        if other is not None:
            other.set_ylabel("metric")
        handles, names = ax.get_legend_handles_labels()
        if other is not None:
            handles, names = handles + other.get_legend_handles_labels()[0], names + other.get_legend_handles_labels()[1]
        ax.legend(handles, names, frameon=False)
        return ax

    def __repr__(self) -> str:
        last = ", ".join(f"{name} {values[-1]:.6g}" for name, values in self.history.items())
        return f"History({len(next(iter(self.history.values()), []))} epochs{': ' + last if last else ''})"


def minibatches(*data: Any, batch_size: int = 32, shuffle: bool = True, seed: Any = None) -> Iterator[tuple[np.ndarray, ...]]:
    """Tuples of matching rows of the given arrays, batch_size at a time; the last batch is smaller, never dropped (docs/by-hand S22).

    minibatches(x, y, batch_size=120, seed=0) gives the batches of `fit`'s first epoch with that seed; a numpy Generator as seed goes on,
    one permutation per pass, as `fit` does from epoch to epoch. Raises ValueError when the arrays' rows differ in number.
    """
    if not data:
        raise TypeError("minibatches needs at least one array")
    columns = [np.asarray(array) for array in data]
    for i, array in enumerate(columns):
        if array.ndim == 0 or len(array) != len(columns[0]):
            raise ValueError(f"data must have the same number of rows, got {arrays.describe(columns[0])} and, as argument {i}, {arrays.describe(array)}")
    batch_size = arrays.integer("batch_size", batch_size, least=1)
    order = _order(arrays.generator(seed), len(columns[0]), arrays.flag("shuffle", shuffle))
    return (tuple(array[first : first + batch_size] if order is None else array[order[first : first + batch_size]] for array in columns)
            for first in range(0, len(columns[0]), batch_size))


def _order(rng: np.random.Generator, rows: int, shuffle: bool) -> np.ndarray | None:
    return rng.permutation(rows).astype(np.int64, copy=False) if shuffle else None


def _orders(rng: np.random.Generator, rows: int, shuffle: bool, epochs: int) -> np.ndarray | None:
    """Those of some epochs, one behind the other."""
    return np.concatenate([_order(rng, rows, shuffle) for _ in range(epochs)]) if shuffle and epochs > 1 else _order(rng, rows, shuffle)


def _sequence(name: str, value: Iterable[Any]) -> list[Any]:
    try:
        return list(value)
    except TypeError:
        raise TypeError(f"{name} must be a sequence, got {arrays.describe(value)}") from None


# ---- metrics ---------------------------------------------------------------------------------------------------------------------------

Metric = str | Callable[[np.ndarray, np.ndarray], float]


def _metrics(metrics: Iterable[Metric], terms: Sequence[Objective]) -> dict[str, Metric]:
    """name -> metric, checked against what the loss can say."""
    if len(terms) > 1 and metrics:
        raise ValueError(f"metrics are for models of one output, got {metrics!r}")
    loss = terms[0].loss
    if isinstance(metrics, str):
        raise TypeError(f"metrics must be a sequence such as ('accuracy',), got the string {metrics!r}")
    metrics = _sequence("metrics", metrics)
    named: dict[str, Metric] = {}
    for metric in metrics:
        if metric == "accuracy":
            if getattr(loss, "threshold", None) is None:
                raise ValueError(f"metrics: 'accuracy' needs a loss that tells classes apart, got {loss!r}")
            if "accuracy" in named:
                raise ValueError("metrics must have names of their own beside 'loss', got 'accuracy' twice")
            named["accuracy"] = metric
        elif callable(metric):
            name = getattr(metric, "__name__", type(metric).__name__)
            if name == "loss" or name in named:
                raise ValueError(f"metrics must have names of their own beside 'loss', got {name!r} twice")
            named[name] = metric
        else:
            raise (ValueError if isinstance(metric, str) else TypeError)(f"metrics must hold 'accuracy' or callables (target, prediction) -> float, got {metric!r}")
    return named


def _scores(metrics: dict[str, Metric], loss: Any, y: np.ndarray, t: np.ndarray | None, label: np.ndarray | None, prediction: np.ndarray
            ) -> dict[str, float]:
    return {name: _core.hits(loss.threshold, prediction, t, label) / len(prediction) if metric == "accuracy" else float(metric(y, prediction))
            for name, metric in metrics.items()}


# ---- losses as fit sees them -------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Objective:
    """What one output is trained for: the term weight · loss of the whole loss."""

    loss: Any
    weight: float = 1.0


def objectives(model: Any, loss: Any, weights: Any) -> list[Objective]:
    """One per output, checked."""
    widths = model.output_widths
    if widths is None:
        if weights is not None:
            raise ValueError(f"loss_weights are for models with a list of outputs, got {weights!r}")
        found = [Objective(loss)]
    else:
        losses = _sequence("loss", loss)
        if len(losses) != len(widths):
            raise ValueError(f"loss must hold one loss per output, {len(widths)}, got {len(losses)}")
        factors = [1.0] * len(widths) if weights is None else [arrays.number("loss_weights", w, low=0) for w in _sequence("loss_weights", weights)]
        if len(factors) != len(widths):
            raise ValueError(f"loss_weights must hold one number per output, {len(widths)}, got {len(factors)}")
        found = [Objective(*pair) for pair in zip(losses, factors, strict=True)]
    for i, objective in enumerate(found):
        name = "loss" if widths is None else f"loss[{i}]"
        if isinstance(objective.loss, type) or not callable(getattr(objective.loss, "value_and_grad", None)):
            raise TypeError(f"{name} must be a loss such as fb.MSELoss() or an object with value_and_grad, got {arrays.describe(objective.loss)}")
        if isinstance(objective.loss, CrossEntropyLoss) and getattr(_last(model, i)[0], "operation", None) == "softmax":
            raise ValueError(f"{name}: CrossEntropyLoss expects logits, but the model ends in Softmax; take that layer away (fb.kernels.softmax turns "
                             "predictions into probabilities)")
    return found


def _listed(results: Any) -> list[np.ndarray]:
    """What a program returns, one array or several, as a list."""
    return results if isinstance(results, list) else [results]


def value_and_grad(terms: Sequence[Objective], predictions: Any, targets: Sequence[Any], sample_weight: np.ndarray | None) -> tuple[float, Any]:
    """The whole loss and its gradient by what a program returned, one array or a list."""
    total, gradients = 0.0, []
    for term, prediction, target in zip(terms, _listed(predictions), targets, strict=True):
        value, gradient = _custom(term.loss, prediction, target, *(() if sample_weight is None else (sample_weight,)))
        total += term.weight * value
        gradients.append(arrays.convert(term.weight * gradient if term.weight != 1 else gradient, prediction.dtype))
    return total, gradients if len(gradients) > 1 else gradients[0]


def _custom(loss: Any, prediction: np.ndarray, *rest: np.ndarray) -> tuple[float, np.ndarray]:
    """A custom loss' value and gradient, when that is what it returned."""
    name = "loss.value_and_grad"
    result = loss.value_and_grad(prediction, *rest)
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise TypeError(f"{name} must return (value, gradient), got {arrays.describe(result)}")
    value, gradient = arrays.real(f"{name}'s value", result[0]), arrays.real(f"{name}'s gradient", result[1])
    if value.ndim:
        raise TypeError(f"{name} must return a float as value, got {arrays.describe(value)}")
    if gradient.shape != prediction.shape:
        raise ValueError(f"{name} must return a gradient of shape {prediction.shape}, got {arrays.describe(gradient)}")
    return float(value), gradient


def _last(model: Any, output: int) -> tuple[Any, int]:
    """The last layer that does something to an output, and its node."""
    node = model.outputs[output]
    while model.nodes[node].layer is not None and model.nodes[node].layer.operation == "identity":
        node = model.nodes[node].reads[0]
    return model.nodes[node].layer, node


# ---- one data set, ready to train on -------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Target:
    """Of one output: as it came, and for the engine as values t (n, O) or as labels (n)."""

    y: Any
    t: np.ndarray | None
    label: np.ndarray | None


class Data:
    """Converted, checked arrays: x (n, I), a Target per output, the rows' weights or None."""

    def __init__(self, model: Any, terms: Sequence[Objective], x: Any, y: Any, sample_weight: Any, names: tuple[str, str] = ("x", "y")):
        self.x = model.matrix(names[0], x)
        rows, several, name = len(self.x), model.output_widths is not None, names[1]
        if rows == 0:
            raise ValueError(f"{names[0]} must have at least one row, got {arrays.describe(self.x)}")
        if several and (not isinstance(y, list | tuple) or len(y) != len(terms)):
            raise ValueError(f"{name} must be a list of {len(terms)} targets, got {arrays.describe(y)}")
        parts = [(f"{name}[{i}]", part) for i, part in enumerate(y)] if several else [(name, y)]
        columns = [arrays.real(called, part) if isinstance(term.loss, Loss) else np.asarray(part)   # a custom loss knows its targets itself
                   for term, (called, part) in zip(terms, parts, strict=True)]
        for (called, _), column in zip(parts, columns, strict=True):
            if column.ndim == 0 or len(column) != rows:
                raise ValueError(f"{called} must have as many rows as {names[0]}, {rows}, got {arrays.describe(column)}")
        arrays.require_finite(names[0], self.x)
        self.targets = []
        for i, (term, (called, _), column) in enumerate(zip(terms, parts, columns, strict=True)):
            t = label = None
            if isinstance(term.loss, Loss):
                t, label = term.loss.target(called, column, rows, model.nodes[model.outputs[i]].width or self.x.shape[1], model.dtype)
                arrays.require_finite(called, t)
            self.targets.append(Target(column, t, label))
        self.weight = arrays.sample_weight(sample_weight, model.dtype, rows)

    def __len__(self) -> int:
        return len(self.x)


class _NativeRun:
    """Epochs in C. See _core.Run."""

    def __init__(self, model: Any, terms: Sequence[Objective], optimizer: Optimizer, data: Any, batch_size: int, clip_norm: float,
                 metrics: dict[str, Metric], tolerant: bool = False):
        outputs, losses = list(model.outputs), [term.loss for term in terms]
        through_sigmoid = []
        for i, loss in enumerate(losses):
            layer, node = _last(model, i)
            through_sigmoid.append(isinstance(loss, BCELoss) and getattr(layer, "function", None) == "sigmoid")
            if through_sigmoid[i]:   # docs/by-hand/losses.md: the pair in its simplified form, p - y
                outputs[i], losses[i] = model.nodes[node].reads[0], BCEWithLogitsLoss(loss.reduction)
        self._through_sigmoid = through_sigmoid[0]
        self.model, self.data, self.metrics = model, data, metrics
        program = model.workspace.use(model.compile(capacity=batch_size, training=True, inputs=data.x.shape[1], outputs=outputs))
        wants_outputs = any(callable(metric) for metric in metrics.values())
        self._outputs = np.empty((len(data), program.widths[0]), model.dtype) if wants_outputs else None
        gradients = model.workspace.array("gradients", model.flat_parameters)
        state1, state2 = (*optimizer.state, None, None)[:2]
        engine_terms = [(loss.rule(width), term.weight, target.t, target.label, None if i else self._outputs)
                        for i, (loss, width, term, target) in enumerate(zip(losses, program.widths, terms, data.targets, strict=True))]
        self.run = _core.Run(program, engine_terms, optimizer.rule(model, clip_norm), model.flat_parameters, gradients, state1, state2, data.x, data.weight,
                             batch_size, losses[0].threshold if "accuracy" in metrics else None, model.seed, model.steps, optimizer.steps, tolerant)
        self.start, self.rewind = self.run.start, self.run.rewind
        self.pace = model.workspace.pace(self.run.choices)

    def advance(self, seconds: float, batches: int = 0, copies: Sequence[np.ndarray] = ()) -> int:
        """Whole steps for about this long, at least one; `batches` > 0: that many at most. `copies` take what parameters and states are now."""
        first = self.run.steps
        status = self.run.advance(*self.pace.turn(seconds), batches, copies)
        if steps := self.run.steps - first:
            self.pace.ran(steps)
        return status

    def scores(self, epoch: int, order: np.ndarray | None, rows: int) -> dict[str, float]:
        """Metrics over the first `rows` rows of an epoch that was started; of the last one, where they are somebody's functions."""
        result: dict[str, float] = {}
        for name, metric in self.metrics.items():
            if metric == "accuracy":
                result[name] = self.run.totals(epoch)[1] / rows
                continue
            prediction = self._outputs[:rows]
            if self._through_sigmoid:
                prediction = _core.map_forward(_core.ACTIVATIONS["sigmoid"], prediction, np.empty_like(prediction))
            result[name] = float(metric(self.data.targets[0].y[slice(rows) if order is None else order[:rows]], prediction))
        return result


class _PythonRun:
    """Epochs for a loss that is somebody's Python object: each phase of a step is native, the loss in between is called here."""

    def __init__(self, model: Any, terms: Sequence[Objective], optimizer: Optimizer, data: Data, batch_size: int, clip_norm: float,
                 metrics: dict[str, Metric]):
        self.model, self.terms, self.optimizer, self.data, self.metrics = model, terms, optimizer, data, metrics
        self.batch_size = batch_size
        self.program = model.workspace.use(model.compile(capacity=batch_size, training=True, inputs=data.x.shape[1]))
        self.rule = optimizer.rule(model, clip_norm)
        self.gradients = model.workspace.array("gradients", model.flat_parameters)
        self.outputs = np.empty((len(data), self.program.widths[0]), model.dtype) if metrics else None
        self.run = self   # the counters that fit reads are here
        self.steps, self.dropout_step = optimizer.steps, model.steps

    def start(self, order: np.ndarray | None, rates: np.ndarray) -> None:
        self.order, self.rates, self.batch, self.loss_sum = order, rates, 0, 0.0
        self.batches = len(rates)

    def rewind(self, steps: int, dropout_step: int) -> None:
        self.steps, self.dropout_step = steps, dropout_step

    def advance(self, seconds: float, batches: int = 0, copies: Sequence[np.ndarray] = ()) -> int:
        """As _NativeRun.advance, without copies: a step that breaks is undone at once, and nobody goes back."""
        end, first_batch = time.monotonic() + seconds, self.batch
        while True:
            status = self._step()
            if status != _core.RUNNING or time.monotonic() >= end or self.batch - first_batch == batches:
                return status

    def _step(self) -> int:
        model, first = self.model, self.batch * self.batch_size
        rows = slice(first, min(first + self.batch_size, len(self.data)))
        take = rows if self.order is None else self.order[rows]
        before = [array.copy() for array in (model.flat_parameters, *self.optimizer.state)]   # the loss may be stateful: no replay
        out = self.program.forward(model.flat_parameters, np.ascontiguousarray(self.data.x[take]), True, model.seed, self.dropout_step)
        if self.outputs is not None:
            self.outputs[rows] = out
        self.last_loss, dout = value_and_grad(self.terms, out, [target.y[take] for target in self.data.targets],
                                              None if self.data.weight is None else self.data.weight[take])
        broken = not math.isfinite(self.last_loss)
        if not broken:
            self.program.backward(model.flat_parameters, self.gradients, dout)
            state1, state2 = (*self.optimizer.state, None, None)[:2]
            broken = self.rule.step(self.rates[self.batch], self.steps + 1, self.gradients, model.flat_parameters, state1, state2)
        if broken:
            for array, old in zip((model.flat_parameters, *self.optimizer.state), before, strict=True):
                array[...] = old
            return _core.LOSS_NOT_FINITE   # nothing is left to restore
        self.steps, self.dropout_step, self.batch = self.steps + 1, self.dropout_step + 1, self.batch + 1
        self.loss_sum += self.last_loss * (rows.stop - rows.start)
        return _core.DONE if self.batch == self.batches else _core.RUNNING

    def totals(self, epoch: int = 0) -> tuple[float, float]:
        return self.loss_sum, 0.0

    def scores(self, epoch: int, order: np.ndarray | None, rows: int) -> dict[str, float]:
        y = self.data.targets[0].y[slice(rows) if order is None else order[:rows]]
        return {name: float(metric(y, self.outputs[:rows])) for name, metric in self.metrics.items()}


class _Recovery:
    """The way back to the last finite parameters: training is deterministic, so a snapshot and a list of what was run since are enough.

    A snapshot is taken about once a second, or rarer where copying would cost more than 2 % of the time; by the run's threads.
    """

    INTERVAL, SHARE, LOG_BYTES = 1.0, 0.02, 64 << 20
    COPIED = 4e9   # bytes a second

    def __init__(self, run: Any, held: Sequence[np.ndarray], workspace: Workspace):
        self.run, self.held = run, held
        self.copies = [workspace.array(f"copy {i}", array) for i, array in enumerate(held)]
        self.stale = True   # somebody else may have written to the parameters

    def prepare(self) -> Sequence[np.ndarray]:
        """Before every slice: where it is to copy what it begins with, or nothing."""
        now = time.monotonic()
        if not self.stale and now < self.due and self.bytes <= self.LOG_BYTES:
            return ()
        self.counters = self.run.run.steps, self.run.run.dropout_step
        self.log: list[tuple[np.ndarray | None, np.ndarray, int, int]] = []
        self.bytes, self.stale = 0, False
        self.due = now + max(self.INTERVAL, sum(copy.nbytes for copy in self.copies) / self.COPIED / self.SHARE)
        return self.copies

    def ran(self, order: np.ndarray | None, rates: np.ndarray, first: int, last: int) -> None:
        """Batches [first, last) of an epoch are done."""
        if self.log and self.log[-1][0] is order and self.log[-1][1] is rates and self.log[-1][3] == first:
            self.log[-1] = (order, rates, self.log[-1][2], last)
        else:
            self.log.append((order, rates, first, last))
            self.bytes += rates.nbytes + (0 if order is None else order.nbytes)

    def restore(self) -> None:
        """Back to the snapshot, and from there again through everything that ran."""
        for array, copy in zip(self.held, self.copies, strict=True):
            array[...] = copy
        self.run.rewind(*self.counters)
        for order, rates, first, last in self.log:
            if last > first:
                self.run.start(order, rates, first)
                while (done := self.run.run.batch) < last:
                    self.run.advance(SLICE, last - done)


# ---- fit -----------------------------------------------------------------------------------------------------------------------------------

def _progress(progress: Any, total: int) -> Any:
    if progress not in ("auto", True, False):
        raise ValueError(f"progress must be 'auto', True or False, got {progress!r}")
    if progress == "auto":
        progress = sys.stderr is not None and sys.stderr.isatty()
    if not progress:
        return None
    from tqdm import tqdm

    return tqdm(total=total, unit="batch", dynamic_ncols=True, mininterval=0.1)


EVENTS = ("on_train_begin", "on_train_end", "on_epoch_begin", "on_epoch_end", "on_batch_end")


def _callbacks(callbacks: Iterable[Any]) -> list[Any]:
    callbacks = _sequence("callbacks", callbacks)
    for callback in callbacks:
        if isinstance(callback, type) or not any(callable(getattr(callback, event, None)) for event in EVENTS):
            raise TypeError(f"callbacks must have one of the methods {', '.join(EVENTS)}, got {arrays.describe(callback)}")
    return callbacks


def _call(callbacks: Sequence[Any], event: str, *arguments: Any) -> bool:
    """Calls every callback that has this method; True when one asked to stop."""
    stop = False
    for callback in callbacks:
        method = getattr(callback, event, None)
        if method is not None:
            stop |= method(*arguments) is True
    return stop


def fit(model: Any, x: Any, y: Any, *, loss: Any, optimizer: Optimizer, epochs: int, batch_size: int, shuffle: bool, seed: Any,
        sample_weight: Any, validation_data: Any, metrics: Iterable[Metric], callbacks: Iterable[Any], clip_norm: float | None,
        progress: Any, loss_weights: Any) -> History:
    """See Model.fit."""
    terms = objectives(model, loss, loss_weights)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be an optimizer such as fb.SGD(lr=0.1), got {arrays.describe(optimizer)}")
    epochs = arrays.integer("epochs", epochs, least=0)
    batch_size = arrays.integer("batch_size", batch_size, least=1)
    shuffle = arrays.flag("shuffle", shuffle)
    clip = 0.0 if clip_norm is None else arrays.number("clip_norm", clip_norm, low=0, open_low=True)
    callbacks = _callbacks(callbacks)
    named = _metrics(metrics, terms)
    rng = arrays.generator(seed)
    data = Data(model, terms, x, y, sample_weight)
    validation = None
    if validation_data is not None:
        if not isinstance(validation_data, tuple | list) or len(validation_data) not in (2, 3):
            raise TypeError(f"validation_data must be (x, y) or (x, y, sample_weight), got {arrays.describe(validation_data)}")
        xv, yv, *wv = validation_data
        validation = Data(model, terms, xv, yv, *(wv or [None]), names=("validation_data[0]", "validation_data[1]"))
    batch_size = min(batch_size, len(data))
    batches = -(-len(data) // batch_size)
    if min(batch_size, (len(data) - 1) % batch_size + 1) < model.least_rows:
        raise ValueError(f"batch_size must leave every batch {model.least_rows} rows to train BatchNorm1d, got {batch_size} for {len(data)} rows")
    bar = _progress(progress, epochs * batches)

    history = History()
    run: Any = None
    try:
        with model.in_use:
            optimizer.bind(model)
            model.optimizer = optimizer
            native = all(isinstance(term.loss, Loss) for term in terms)
            run = (_NativeRun if native else _PythonRun)(model, terms, optimizer, data, batch_size, clip, named)
            recovery = _Recovery(run, (model.flat_parameters, *optimizer.state) if native else (), model.workspace)
            watched = any(hasattr(callback, "on_batch_end") for callback in callbacks)
            between = bool(callbacks) or validation is not None or not native or any(callable(metric) for metric in named.values())
            _call(callbacks, "on_train_begin", model)
            epoch, stop = 0, False
            while epoch < epochs and not stop:
                # So many are begun together as a slice lasts, when nobody wants to know anything between them.
                several = 1 if between else min(epochs - epoch, max(1, int(SLICE * run.pace.rate / batches)))
                _call(callbacks, "on_epoch_begin", model, epoch, {})
                recovery.stale |= bool(callbacks)
                order, rates = _orders(rng, len(data), shuffle, several), optimizer.rates(several * batches)
                run.start(order, rates)
                status = _core.RUNNING
                while status == _core.RUNNING and not stop:
                    copies, first = recovery.prepare(), run.run.batch
                    status = run.advance(SLICE, 1 if watched else 0, copies)
                    optimizer.steps = run.run.steps
                    if status in (_core.LOSS_NOT_FINITE, _core.PARAMETER_NOT_FINITE):
                        _diverged(status, run, recovery, order, rates, first, epoch, epochs, batches)
                    recovery.ran(order, rates, first, run.run.batch)
                    if bar is not None:
                        last, done = divmod(run.run.batch - 1, batches)
                        bar.set_description_str(f"epoch {epoch + last + 1}/{epochs}", refresh=False)
                        rows = min((done + 1) * batch_size, len(data))
                        bar.set_postfix_str(f"loss {run.run.totals(last)[0] / rows:.4g}", refresh=False)
                        bar.update(run.run.batch - first)
                    if watched:
                        stop = _call(callbacks, "on_batch_end", model, run.run.batch - 1, {"loss": run.run.last_loss})
                        recovery.stale = True
                        rates[run.run.batch :] = optimizer.rates(batches - run.run.batch)
                for i in range(several):
                    rows = min((run.run.batch - i * batches) * batch_size, len(data))
                    logs = {"loss": run.run.totals(i)[0] / rows} | run.scores(i, order, rows)
                    if validation is not None:
                        logs |= {f"val_{name}": value for name, value in _evaluate(model, validation, terms, named).items()}
                    history.append(logs)
                    stop |= _call(callbacks, "on_epoch_end", model, epoch + i, logs)
                epoch += several
            _call(callbacks, "on_train_end", model)
    finally:
        if run is not None:
            model.workspace.trim()
            optimizer.steps, model.steps = run.run.steps, run.run.dropout_step
            model.optimizer = None
            model.parameters_changed()
        if bar is not None:
            bar.close()
    return history


def _diverged(status: int, run: Any, recovery: _Recovery, order: np.ndarray | None, rates: np.ndarray, first: int, epoch: int, epochs: int,
              batches: int) -> None:
    """Leaves the model as it was before the step that broke it, one after epoch `epoch` began, and raises."""
    loss = run.run.last_loss
    batch = run.run.batch
    reason = f"the loss is {loss}"
    if status == _core.PARAMETER_NOT_FINITE:
        batch -= 1   # its update had been made
        recovery.ran(order, rates, first, batch)
        recovery.restore()
        reason = f"a parameter became infinite or NaN after a loss of {loss}"
    epoch, batch = epoch + batch // batches, batch % batches
    raise FloatingPointError(f"training diverged in epoch {epoch + 1} of {epochs}, batch {batch + 1} of {batches}: {reason}. The model has the last finite "
                             "parameters, those before this batch. A smaller learning rate or clip_norm may help")


def _evaluate(model: Any, data: Data, terms: Sequence[Objective], metrics: dict[str, Metric]) -> dict[str, float]:
    predictions, total = _listed(model.predict_matrix(data.x)), 0.0
    for term, prediction, target in zip(terms, predictions, data.targets, strict=True):
        if isinstance(term.loss, Loss):
            value = term.loss.rule(prediction.shape[1]).value(prediction, target.t, target.label, data.weight, None)
        else:
            value = _custom(term.loss, prediction, target.y, *(() if data.weight is None else (data.weight,)))[0]
        total += term.weight * value
    first = data.targets[0]
    return {"loss": total} | _scores(metrics, terms[0].loss, first.y, first.t, first.label, predictions[0])


def evaluate(model: Any, x: Any, y: Any, *, loss: Any, metrics: Iterable[Metric], sample_weight: Any, loss_weights: Any) -> dict[str, float]:
    """See Model.evaluate."""
    terms = objectives(model, loss, loss_weights)
    named = _metrics(metrics, terms)
    return _evaluate(model, Data(model, terms, x, y, sample_weight), terms, named)
