"""graph -> program: order, fusion, which gradients are wanted and how they meet, and where every value lies in the arena.

A graph is a list of nodes in topological order; node i has a layer and the numbers of the nodes it reads (none for an input). A
program is flat: numbered values and operations over them (csrc/program.h). Nothing here knows of arrays or of training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from . import _core

PREDICT_ROWS = 256   # rows that one thread takes through all layers at a time
IDENTITY = _core.ACTIVATIONS["identity"]


@dataclass(frozen=True)
class Node:
    """A layer (graph.Layer says what the compiler reads of it) applied to other nodes; an input has none. width: output features."""

    layer: Any
    reads: tuple[int, ...]
    width: int


@dataclass(frozen=True)
class _Op:
    """One operation before the numbers of C: see fbp_op."""

    kind: str
    x: int
    y: int
    function: str = "identity"
    alpha: float = 0.0
    layer: Any = None   # the owner of the parameters
    stream: int = 0


def lower(nodes: Sequence[Node], output: int, *, training: bool) -> tuple[list[_Op], int]:
    """Operations that compute node `output`, and the number of the value that holds it. Value i belongs to node i.

    Fusion: an activation moves into the dense operation whose result only it reads, unless training needs that result for the
    derivative. Identity, and Dropout outside training, vanish: their readers read what they read.
    """
    readers = [0] * len(nodes)
    for node in nodes:
        for read in node.reads:
            readers[read] += 1
    same: dict[int, int] = {}   # node -> the value it is
    made_by: dict[int, int] = {}   # value -> index of its operation
    operations: list[_Op] = []
    for y, node in enumerate(nodes[: output + 1]):
        layer = node.layer
        if layer is None:
            same[y] = y
            continue
        x = same[node.reads[0]]
        if layer.operation == "identity" or (layer.operation == "dropout" and (not training or layer.alpha == 0)):
            same[y] = x
            continue
        same[y] = y
        if layer.operation == "dense":
            operation = _Op("dense", x, y, layer=layer)
        elif layer.operation == "activation":
            producer = made_by.get(x)
            fusible = producer is not None and operations[producer].kind == "dense" and operations[producer].function == "identity"
            if fusible and readers[node.reads[0]] == 1 and readers[x] == 1 and not (training and layer.derivative_from == "input"):
                operations[producer] = replace(operations[producer], y=y, function=layer.function, alpha=layer.alpha)
                made_by[y] = producer
                continue
            operation = _Op("activation", x, y, layer.function, layer.alpha)
        else:
            operation = _Op(layer.operation, x, y, alpha=layer.alpha, stream=y)
        made_by[y] = len(operations)
        operations.append(operation)
    return operations, same[output]


def _plan(sizes: Mapping[int, int], lives: Mapping[int, tuple[int, int]]) -> tuple[dict[int, int], int]:
    """Offsets such that buffers alive at the same time do not overlap, first fit in order of birth; and the arena's size."""
    placed: list[tuple[int, int, int, int]] = []   # offset, end, first, last
    offsets: dict[int, int] = {}
    for key in sorted(lives, key=lambda k: lives[k]):
        first, last = lives[key]
        at = 0
        for offset, end, other_first, other_last in sorted(placed):
            if other_last >= first and other_first <= last and offset < at + sizes[key]:
                at = max(at, end)
        offsets[key] = at
        placed.append((at, at + sizes[key], first, last))
    return offsets, max((end for _, end, _, _ in placed), default=0)


def compile_graph(nodes: Sequence[Node], output: int, *, dtype: np.dtype, capacity: int, training: bool,
                  places: Mapping[Any, tuple[int, int]], parameters: int, input_gradient: bool = False) -> _core.Program:
    """The program that computes node `output` of `nodes` from its input, for at most `capacity` rows at once.

    places: layer -> offsets of weight and bias (-1: none) in the flat parameters, which have `parameters` elements.
    input_gradient: backward also computes dL/dinput.
    """
    operations, out = lower(nodes, output, training=training)
    input = next(i for i, node in enumerate(nodes) if node.layer is None)
    unit = 64 // np.dtype(dtype).itemsize
    count = len(operations)

    # Which values have a gradient anybody asked for: those that depend on parameters, and the input when wanted.
    wanted = {input: input_gradient}
    for op in operations:
        wanted[op.y] = op.kind == "dense" or wanted[op.x]
    first_reader = {op.x: i for i, op in reversed(list(enumerate(operations)))}
    last_reader = {op.x: i for i, op in enumerate(operations)}
    maker = {op.y: i for i, op in enumerate(operations)}
    fused = {op.y: op for op in operations if op.kind == "dense" and op.function != "identity"}

    # Time runs 0..count-1 forward; backward passes operation i at time 2*count - i, and may still read its dy to make dw at the next.
    values = {input} | set(maker)
    size = {v: -(-nodes[v].width * capacity // unit) * unit for v in values}
    end = 2 * count + 1
    if training:
        lives = {v: (-1, end) for v in values}
        gradient_lives = {out: (count, 2 * count - maker.get(out, 0) + 1)}
        for v in values - {out}:
            if wanted[v]:
                gradient_lives[v] = (2 * count - last_reader[v], end if v == input else 2 * count - maker[v] + 1)
        if out == input or (input_gradient and input in gradient_lives):
            gradient_lives[input] = (gradient_lives[input][0], end)
    else:
        lives = {v: (maker.get(v, -1), last_reader.get(v, count)) for v in values if v not in (input, out)}
        gradient_lives = {}
    offsets, arena = _plan(size | {~v: size[v] for v in gradient_lives}, lives | {~v: life for v, life in gradient_lives.items()})

    number = {v: i for i, v in enumerate(sorted(values))}
    table = []
    for i, op in enumerate(operations):
        closing = fused.get(op.x) if training and first_reader[op.x] == i else None
        weight, bias = places[op.layer] if op.layer is not None else (-1, -1)
        later_reader = last_reader[op.x] != i
        dx = _core.UNWANTED if not training or not wanted[op.x] else _core.MORE if later_reader else _core.FIRST
        dw, last = _core.FIRST, False
        if op.layer is not None:   # backward meets the layer's last use first
            dw = _core.MORE if any(other.layer is op.layer for other in operations[i + 1 :]) else _core.FIRST
            last = all(other.layer is not op.layer for other in operations[:i])
        table.append((_core.OPERATIONS[op.kind], number[op.x], number[op.y], _core.ACTIVATIONS[op.function], op.alpha,
                      _core.ACTIVATIONS[closing.function] if closing else IDENTITY, closing.alpha if closing else 0.0, dx, dw, last, weight, bias,
                      op.stream))
    ends = fused.get(out)
    complete = {op.layer for op in operations if op.layer is not None} == set(places)
    work = sum(nodes[op.x].width * nodes[op.y].width if op.kind == "dense" else 8 * nodes[op.y].width for op in operations)
    return _core.Program(
        dtype, [(nodes[v].width, offsets.get(v, -1), offsets.get(~v, -1)) for v in sorted(values)], table, number[input], number[out],
        complete, _core.ACTIVATIONS[ends.function] if ends else IDENTITY, ends.alpha if ends else 0.0, capacity, arena, float(work), parameters)
