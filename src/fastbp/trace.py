"""Seeing backpropagation: every node's value and delta, and what a node is called."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import arrays, training
from .symbols import Layer, Symbol

SHOWN = 12   # numbers of a node that a table or a picture has room for

SIGNS = {"plus": "+", "minus": "−", "times": "×", "over": "÷"}


@dataclass(frozen=True)
class Entry:
    """A node as people see it: its number, its name in the model ("" for what has no parameters), what it does, and the entries it reads."""

    number: int
    name: str
    title: str
    reads: tuple[int, ...]
    width: int
    place: int   # among model.nodes


def entries(model: Any) -> list[Entry]:
    """The nodes of a model in topological order: a chain's layers, or a graph's symbols."""
    places = model.places
    number = {place: i for i, place in enumerate(places)}
    return [Entry(i, model.layer_name(node.layer), title(node.layer), tuple(number[read] for read in node.reads if read in number), node.width, place)
            for i, place in enumerate(places) for node in (model.nodes[place],)]


def title(layer: Layer | None) -> str:
    """What a layer does, in a word or a sign."""
    if layer is None or layer.operation == "pick":
        return "Input"
    if layer.operation == "binary":
        return SIGNS[layer.function]
    if layer.operation == "affine":
        factor = "x" if layer.alpha == 1 else "−x" if layer.alpha == -1 else f"{layer.alpha:g} x"
        return factor if layer.beta == 0 else f"{factor} {'+' if layer.beta > 0 else '−'} {abs(layer.beta):g}"
    if layer.operation == "dense":
        return f"{type(layer).__name__} {layer.in_features} → {layer.out_features}"
    return {"sum": "Σ", "parameter": "Parameter"}.get(layer.operation, type(layer).__name__)


@dataclass(frozen=True)
class Row:
    """One node: value and delta = dL/dvalue, both (B, width); number, name, title and reads as in the model's summary."""

    number: int
    name: str
    title: str
    reads: tuple[int, ...]
    value: np.ndarray
    delta: np.ndarray


class Trace:
    """What `Model.trace` returns: `loss`, a Row per node, and the parameters' `gradients` by name. Prints as a table.

    trace[i], trace["name"] or trace[node] gives a Row. Where several nodes read a value its delta is the sum of what comes back (docs/by-hand/chain-rule.md); a value
    that only Identity, or Dropout in evaluation, lies between shows the same numbers.
    """

    def __init__(self, loss: float, rows: Sequence[Row], gradients: dict[str, np.ndarray], numbers: dict[Symbol, int]):
        self.loss, self.rows, self.gradients, self._numbers = loss, tuple(rows), gradients, numbers

    def __getitem__(self, node: int | str | Symbol) -> Row:
        if isinstance(node, str):
            named = [row for row in self.rows if row.name == node]
            if not named:
                raise KeyError(f"no node is called {node!r}; the names are {', '.join(row.name for row in self.rows if row.name)}")
            return named[0]
        if isinstance(node, Symbol):
            if node not in self._numbers:
                raise KeyError(f"{node!r} is not a node of this model")
            return self.rows[self._numbers[node]]
        return self.rows[node]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __str__(self) -> str:
        head = ("", "node", "reads", "shape", "value", "delta = dL/dvalue")
        table = [head] + [(str(row.number), f"{row.name}: {row.title}" if row.name else row.title, " ".join(map(str, row.reads)), str(row.value.shape),
                           numbers(row.value), numbers(row.delta)) for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return "\n".join([f"loss {self.loss:.9g}"] + ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table])

    __repr__ = __str__


def numbers(array: np.ndarray) -> str:
    """A few numbers as they are, many by their range."""
    if array.size > SHOWN:
        return f"{array.min():.4g} … {array.max():.4g}"
    rows = [" ".join(f"{value:.5g}" for value in row) for row in array]
    return f"[{'; '.join(rows)}]"


def trace(model: Any, x: Any, y: Any, loss: Any, *, train: bool, loss_weights: Any) -> Trace:
    """See Model.trace."""
    terms = training.objectives(model, loss, loss_weights)
    train = arrays.flag("training", train)
    data = training.Data(model, terms, x, y, None)
    program = model.compile(capacity=len(data), training=True, inputs=data.x.shape[1], keep=True)
    parameters, gradients = model.flat_parameters.copy(), arrays.aligned_zeros(model.flat_parameters.size, model.dtype)   # statistics stay as they are
    prediction = program.forward(parameters, data.x, train, model.seed, model.steps)
    value, dout = training.value_and_grad(terms, prediction, [target.y for target in data.targets], None)
    program.backward(parameters, gradients, dout)
    rows = [Row(entry.number, entry.name, entry.title, entry.reads, *program.read(entry.place)) for entry in entries(model)]
    return Trace(float(value), rows, model.views(gradients), {symbol: i for i, symbol in enumerate(model.symbols)})
