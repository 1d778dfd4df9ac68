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

IDENTITY = _core.ACTIVATIONS["identity"]
BINARY = {"plus": 0, "minus": 1, "times": 2, "over": 3}   # enum fbp_binary


@dataclass(frozen=True)
class Node:
    """A layer (graph.Layer says what the compiler reads of it) applied to other nodes; an input has none. width: output features."""

    layer: Any
    reads: tuple[int, ...]
    width: int


def predict_rows(nodes: Sequence[Node]) -> int:
    """Rows that one thread takes through all layers at a time: enough for products, few for what is elementwise and may stay in the first cache."""
    if any(node.layer is not None and node.layer.operation == "dense" for node in nodes):
        return 256
    return max(1, min(256, 1024 // max(node.width for node in nodes)))


@dataclass(frozen=True)
class _Op:
    """One operation before the numbers of C: see fbp_op. x, z: the values it reads (z -1: none)."""

    kind: str
    x: int
    y: int
    function: str = "identity"
    alpha: float = 0.0
    layer: Any = None   # the owner of the parameters
    z: int = -1
    beta: float = 0.0
    at: int = 0
    stream: int = 0

    @property
    def reads(self) -> tuple[int, ...]:
        return tuple(v for v in (self.x, self.z) if v >= 0)


TRAINED = {"dense", "sparse", "parameter", "scale", "embedding"}   # operations with parameters of their own
PRODUCTS = {"dense", "sparse"}   # operations that take an activation in
ENTRIES = 100   # non-zero elements of a sparse row, as far as work is estimated
CLOSERS = {"dense", "activation", "softmax", "dropout", "binary", "affine", "layernorm"}   # operations that can multiply dx by the derivative of what made x
POINTWISE = {"activation", "dropout", "binary", "affine"}   # element i of the result needs element i of the operands, and nothing else


def lower(nodes: Sequence[Node], outputs: Sequence[int], *, training: bool, keep: bool = False) -> tuple[list[_Op], list[int], dict[int, int], list[int]]:
    """Operations that compute the nodes `outputs`, the values that leave them, the value that holds each node they need, and the widths of all values.

    Fusion: an activation moves into the dense operation whose result only it reads, unless training needs that result for the
    derivative, or every node is to `keep` its value. Identity, and Dropout outside training, vanish: their readers read what they read.
    """
    needed = set(outputs)
    for y in range(max(outputs), -1, -1):
        if y in needed:
            needed.update(nodes[y].reads)
    readers = [0] * len(nodes)
    for output in outputs:
        readers[output] += len(outputs) > 1   # somebody else sees it
    for y in needed:
        for read in nodes[y].reads:
            readers[read] += 1
    same: dict[int, int] = {}   # node -> the value it is
    made_by: dict[int, int] = {}   # value -> index of its operation
    operations: list[_Op] = []
    widths = [node.width for node in nodes]
    uses: dict[Any, int] = {}
    for y in sorted(needed):
        node, layer = nodes[y], nodes[y].layer
        if layer is None:
            same[y] = y
            continue
        reads = [same[read] for read in node.reads]
        if layer.operation == "identity" or (layer.operation == "dropout" and (not training or layer.alpha == 0)):
            same[y] = reads[0]
            continue
        same[y] = y
        if layer.operation == "concat":
            at = 0
            for x in reads:
                operations.append(_Op("place", x, y, at=at))
                at += nodes[x].width
            continue
        if layer.operation in ("layernorm", "batchnorm"):   # standardise, then a factor and a summand per column
            standard = y
            if layer.affine:
                standard = len(widths)
                widths.append(node.width)
            uses[layer] = uses.get(layer, 0) + 1
            operations.append(_Op(layer.operation, reads[0], standard, alpha=layer.eps, beta=layer.alpha, layer=layer, stream=uses[layer]))
            if layer.affine:
                operations.append(_Op("scale", standard, y, layer=layer))
            made_by[y] = len(operations) - 1
            continue
        if layer.operation in ("dense", "sparse", "embedding"):
            operation = _Op(layer.operation, reads[0], y, layer=layer, at=getattr(layer, "at", 0))
        elif layer.operation == "parameter":
            operation = _Op("parameter", y, y, layer=layer)
        elif layer.operation == "binary":
            operation = _Op("binary", reads[0], y, layer.function, z=reads[1])
        elif layer.operation == "activation":
            x = reads[0]
            producer = made_by.get(x)
            fusible = producer is not None and operations[producer].kind in PRODUCTS and operations[producer].function == "identity"
            if fusible and not keep and readers[node.reads[0]] == 1 and readers[x] == 1 and not (training and layer.derivative_from == "input"):
                operations[producer] = replace(operations[producer], y=y, function=layer.function, alpha=layer.alpha)
                made_by[y] = producer
                continue
            operation = _Op("activation", x, y, layer.function, layer.alpha)
        else:
            operation = _Op(layer.operation, reads[0], y, alpha=layer.alpha, beta=getattr(layer, "beta", 0.0), at=getattr(layer, "at", 0), stream=y)
        made_by[y] = len(operations)
        operations.append(operation)
    leaving: list[int] = []
    for output in outputs:
        value = same[output]
        if len(outputs) > 1 and (value in leaving or nodes[value].layer is None):   # an output has memory of its own
            operations.append(_Op("affine", value, len(widths), alpha=1.0))
            value = len(widths)
            widths.append(nodes[output].width)
        leaving.append(value)
    return operations, leaving, same, widths


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


def compile_graph(nodes: Sequence[Node], outputs: Sequence[int], *, dtype: np.dtype, capacity: int, training: bool,
                  places: Mapping[Any, Mapping[str, int]], parameters: int, input_gradient: bool = False, keep: bool = False) -> tuple[Any, ...]:
    """The arguments of the _core.Program that computes the nodes `outputs` from the input, for at most `capacity` rows at once.

    places: layer -> name of a parameter -> its offset in the flat parameters, which have `parameters` elements.
    input_gradient: backward also computes dL/dinput. keep: it computes the gradient by every node, and nothing is overwritten: Program.read
    gives them.
    """
    operations, leaving, same, width = lower(nodes, outputs, training=training, keep=keep)
    input = next(i for i, node in enumerate(nodes) if node.layer is None)
    unit = 64 // np.dtype(dtype).itemsize
    count = len(operations)

    # Which values have a gradient anybody asked for: those that depend on parameters, and the input when wanted.
    wanted = {input: input_gradient or keep}
    for op in operations:
        wanted[op.y] = keep or wanted.get(op.y, False) or op.kind in TRAINED or any(wanted[v] for v in op.reads)
    first_reader: dict[int, int] = {}
    last_reader: dict[int, int] = {}
    maker: dict[int, int] = {}   # the first one, of a value that is put together
    for i, op in enumerate(operations):
        maker.setdefault(op.y, i)
        for v in op.reads:
            if op.kind != "parameter":
                first_reader.setdefault(v, i)
                last_reader[v] = i
    fused = {op.y: op for op in operations if op.kind in PRODUCTS and op.function != "identity"}

    def goes_back(op: _Op) -> bool:
        return training and op.kind != "parameter" and any(wanted[v] for v in op.reads)

    # The gradient that a contribution meets: the first in backward order stores, the others add; the loss comes before all. Columns of
    # the input that are picked meet nobody's. One operand of a sum takes the sum's gradient over as it is, where it lies.
    met = set(leaving)
    shared: dict[int, int] = {}   # value -> the first one whose gradient lies in the same place
    contributions: list[dict[str, int]] = [{} for _ in operations]
    for i in reversed(range(count)):
        op = operations[i]
        for key, v in (("dx", op.x), ("dz", op.z)):
            if not goes_back(op) or v < 0 or not wanted[v]:
                contributions[i][key] = _core.UNWANTED
            elif v in met and op.kind != "pick":
                contributions[i][key] = _core.MORE
            else:
                passes = op.kind == "binary" and op.x != op.z and (op.function == "plus" or (op.function == "minus" and key == "dx"))
                shares = passes and not keep and v != input and contributions[i].get("dx") != _core.SHARED
                contributions[i][key] = _core.SHARED if shares else _core.FIRST
                if shares:
                    shared[v] = shared.get(op.y, op.y)
                met.add(v)

    # Elementwise operations on as many elements that follow each other make one stage: they run block by block, at the same time.
    stage: list[int] = []
    for i, op in enumerate(operations):
        joins = i > 0 and {op.kind, operations[i - 1].kind} <= POINTWISE and width[op.y] == width[operations[i - 1].y]
        stage.append(stage[-1] if joins else i)

    # Time runs 0..count-1 forward, by stages; backward passes a stage at time 2*count - stage. Its dy may still be read, to make dw, until all
    # workers have met again: at the end of the next stage that goes back.
    def settled(i: int) -> int:
        following = next((stage[j] for j in reversed(range(stage[i])) if goes_back(operations[j])), -1)
        return 2 * count - following

    values = {input} | set(maker)
    # Cache lines behind large values: equal elements of two that follow each other would fall into the same sets of the caches.
    def apart(elements: int) -> int:
        return 5 if elements >= 16384 else 0

    size: dict[Any, int] = {v: (-(-width[v] * capacity // unit) + apart(width[v] * capacity)) * unit for v in values}
    rooms = {("room", i): {"layernorm": capacity, "batchnorm": 5 * width[op.y] + 1}[op.kind] for i, op in enumerate(operations)
             if op.kind in ("layernorm", "batchnorm")}
    size |= {key: -(-elements // unit) * unit for key, elements in rooms.items()}
    end = 2 * count + 1
    if training:
        elsewhere = {op.x for op in operations if op.kind == "sparse"}   # rows of a matrix that is nowhere whole
        lives: dict[Any, tuple[int, int]] = {key: (-1, end) for key in [*values, *rooms] if key not in elsewhere}
        gradient_lives = {}
        for v in values:
            if v in leaving or wanted[v]:
                birth = count if v in leaving else 2 * count - stage[last_reader[v]]
                gradient_lives[v] = birth, end if keep or v == input or v not in maker else settled(maker[v])
    else:
        lives = {v: (stage[maker[v]], stage[last_reader[v]]) for v in values if v != input and v not in leaving} | {key: (stage[key[1]], stage[key[1]]) for key in rooms}
        gradient_lives = {}
    for v, owner in shared.items():
        (birth, death), (other_birth, other_death) = gradient_lives.pop(v), gradient_lives[owner]
        gradient_lives[owner] = min(birth, other_birth), max(death, other_death)
    offsets, arena = _plan(size | {~v: size[v] for v in gradient_lives}, lives | {~v: life for v, life in gradient_lives.items()})
    offsets |= {~v: offsets[~owner] for v, owner in shared.items()}

    # Offsets of an operation's parameters, two at most, and who else has a part in their gradients.
    at: list[tuple[int, int]] = []
    users: dict[int, list[int]] = {}
    for i, op in enumerate(operations):
        names = {"batchnorm": ("running_mean", "running_var"), "parameter": ("", "bias")}.get(op.kind, ("weight", "bias"))
        at.append((-1, -1) if op.layer is None or op.kind == "layernorm" else tuple(places[op.layer].get(name, -1) for name in names))
        for offset in at[i] if op.kind in TRAINED else ():
            users.setdefault(offset, []).append(i)

    def meets(offset: int, i: int) -> tuple[int, bool]:
        """What the gradient of operation i's parameter at this offset meets, and whether it is the last one."""
        them = users.get(offset, [i])
        return _core.FIRST if i == them[-1] else _core.MORE, i == them[0]

    # A product that ends the gradient of what another one made adds up its columns on the way: the gradient of that one's bias.
    sums: dict[int, int] = {}   # operation -> the one whose bias it is
    for i, op in enumerate(operations):
        made = maker.get(op.x)
        if (op.kind == "dense" and goes_back(op) and first_reader[op.x] == i and made is not None and operations[made].kind == "dense"
                and at[made][1] >= 0 and len(users[at[made][1]]) == 1):
            sums[i] = made
    summed = set(sums.values())

    number = {v: i for i, v in enumerate(sorted(values))}
    table = []
    for i, op in enumerate(operations):
        closing = fused.get(op.x) if goes_back(op) and op.kind in CLOSERS and first_reader[op.x] == i else None
        closing_z = fused.get(op.z) if goes_back(op) and op.z >= 0 and first_reader[op.z] == i and op.z != op.x else None
        reader = operations[first_reader[op.y]] if op.y in first_reader else None
        closes = training and op.y in fused and reader is not None and reader.kind not in CLOSERS
        weight, bias = at[i]
        dw, last_w = meets(weight, i)
        db, last_b = meets(bias, i)
        transposed = op.layer is not None and op.layer.transposed
        turns = (op.kind == "dense" and contributions[i]["dx"] == _core.UNWANTED and len(users[weight]) == 1 and not transposed
                 and not width[op.y] < _core.LINE <= width[op.x])  # vectors are filled by the inputs then
        function = BINARY[op.function] if op.kind == "binary" else _core.ACTIVATIONS[op.function]
        table.append((_core.OPERATIONS[op.kind], number[op.x], number[op.x if op.z < 0 else op.z], number[op.y], function,
                      _core.ACTIVATIONS[closing.function] if closing else IDENTITY, _core.ACTIVATIONS[closing_z.function] if closing_z else IDENTITY,
                      contributions[i]["dx"], contributions[i]["dz"],
                      dw, db, last_w, last_b, closes, transposed, turns,
                      weight, bias, at[sums[i]][1] if i in sums else -1, i in summed, places[op.layer]["num_batches_tracked"] if op.kind == "batchnorm" else op.at, op.alpha, op.beta,
                      closing.alpha if closing else 0.0, closing_z.alpha if closing_z else 0.0, op.stream, offsets.get(("room", i), -1), stage[i]))
    ends = []
    for v in leaving:
        closing = fused.get(v) if v not in first_reader else None
        ends.append((number[v], _core.ACTIVATIONS[closing.function] if closing else IDENTITY, closing.alpha if closing else 0.0))
    complete = {op.layer for op in operations if op.layer is not None} == set(places)
    work = sum({"dense": width[op.x], "sparse": ENTRIES}.get(op.kind, 8) * width[op.y] for op in operations)
    return (
        dtype, [(width[v], offsets.get(v, -1), offsets.get(~v, -1)) for v in sorted(values)], table, number[input], ends,
        complete, capacity, arena, float(work), parameters,
        {node: number[value] for node, value in same.items() if value in number})
