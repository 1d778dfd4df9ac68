"""Pictures of graphs: igraph decides where nodes lie, matplotlib draws them (extra: fastbp[plot])."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from . import arrays
from .trace import SHOWN, Entry, Trace, entries, numbers

FONT, LINE, PAD = 9, 0.19, 0.12          # points; inches: a line of text, around a text
GAP, RISE = 0.35, 0.45                   # inches between neighbours, and between layers
FILL = {"input": "#dbeafe", "parameters": "#fde8c8", "other": "#eef0f2"}


def draw(model: Any, path: str | os.PathLike[str], trace: Trace | None) -> None:
    """See Model.draw."""
    try:
        import igraph  # noqa: F401  (used by _columns)
        import matplotlib.pyplot as plt
        from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
        from matplotlib.path import Path
    except ImportError as error:
        raise ImportError(f'draw needs matplotlib and igraph, pip install "fastbp[plot]": {error}') from error

    if trace is not None and not isinstance(trace, Trace):
        raise TypeError(f"trace must be what model.trace returned, or None, got {arrays.describe(trace)}")
    nodes = entries(model)
    if trace is not None and [(row.title, row.reads) for row in trace] != [(entry.title, entry.reads) for entry in nodes]:
        raise ValueError(f"trace must be one of this model, of {len(nodes)} nodes, got one of {len(trace)} nodes")
    texts = [_text(entry, trace) for entry in nodes]
    layers, chains = _routes(nodes)
    with plt.rc_context({"svg.fonttype": "none", "font.size": FONT, "font.family": "sans-serif"}):
        figure = plt.figure()
        sizes = [_size(figure, text) for text in texts]
        heights = [max((sizes[i][1] for i in range(len(nodes)) if layers[i] == level), default=0.0) for level in range(max(layers) + 1)]
        tops, y = [], 0.0   # the middle of each layer, counted downwards
        for height in heights:
            tops.append(-(y + height / 2))
            y += height + RISE
        at = [(x, tops[level]) for x, level in zip(_columns(layers, chains, max(width for width, _ in sizes) + GAP), layers, strict=True)]
        left, right = min(x for x, _ in at), max(x for x, _ in at)
        margin = max(width for width, _ in sizes) / 2 + GAP
        figure.set_size_inches(right - left + 2 * margin, y - RISE + 2 * GAP)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(left - margin, right + margin), ylim=(-(y - RISE) - GAP, GAP))
        axes.axis("off")
        for chain in chains:
            x, y0 = at[chain[0]][0], at[chain[0]][1] - sizes[chain[0]][1] / 2
            vertices, codes = [(x, y0)], [Path.MOVETO]
            for i in chain[1:]:
                (x1, centre), half = at[i], (sizes[i][1] if i < len(nodes) else heights[layers[i]]) / 2
                middle = (y0 + centre + half) / 2
                vertices += [(x, middle), (x1, middle), (x1, centre + half), (x1, centre - half)]
                codes += [Path.CURVE4] * 3 + [Path.LINETO]   # straight down past the boxes of a layer
                x, y0 = x1, centre - half
            del vertices[-1], codes[-1]
            axes.add_patch(FancyArrowPatch(path=Path(vertices, codes), arrowstyle="-|>", mutation_scale=9, color="#64748b", linewidth=1, zorder=1))
        outputs = set(model.outputs)
        for entry, text, (width, height), (x, middle) in zip(nodes, texts, sizes, at, strict=False):
            kind = "input" if entry.title == "Input" else "parameters" if entry.name else "other"
            ends = entry.place in outputs
            axes.add_patch(FancyBboxPatch((x - width / 2, middle - height / 2), width, height, boxstyle="round,pad=0,rounding_size=0.08",
                                          facecolor=FILL[kind], edgecolor="#1e293b" if ends else "#94a3b8", linewidth=1.8 if ends else 0.8, zorder=2))
            for i, line in enumerate(text):
                axes.text(x, middle + height / 2 - PAD - (i + 0.5) * LINE, line, ha="center", va="center", zorder=3,
                          weight="bold" if i == 0 else "normal", color="#0f172a" if i == 0 else "#334155")
        try:
            figure.savefig(path, dpi=200)
        finally:
            plt.close(figure)


def _text(entry: Entry, trace: Trace | None) -> list[str]:
    """The lines in a node's box."""
    lines = [entry.title, f"{entry.name}   (B, {entry.width})" if entry.name and entry.name != entry.title else f"(B, {entry.width})"]
    if trace is not None and trace.rows[entry.number].value.size <= SHOWN:
        row = trace.rows[entry.number]
        lines += [f"value {numbers(row.value)}", f"δ {numbers(row.delta)}"]
    return lines


def _size(figure: Any, text: Sequence[str]) -> tuple[float, float]:
    """Width and height of a box, in inches."""
    renderer = figure.canvas.get_renderer()
    widths = []
    for i, line in enumerate(text):
        drawn = figure.text(0, 0, line, weight="bold" if i == 0 else "normal")
        widths.append(drawn.get_window_extent(renderer).width / figure.dpi)
        drawn.remove()
    return max(0.5, *widths) + 2 * PAD, len(text) * LINE + 2 * PAD


def _routes(nodes: Sequence[Entry]) -> tuple[list[int], list[list[int]]]:
    """(layer of every vertex, the vertices that each edge passes): an edge over several layers goes through vertices of its own, numbered after the
    nodes. A node lies below all that it reads, a node that reads nothing just above its first reader."""
    level = [0] * len(nodes)
    for entry in nodes:
        level[entry.number] = max((level[read] + 1 for read in entry.reads), default=0)
    for entry in nodes:
        readers = [level[other.number] for other in nodes if entry.number in other.reads]
        if not entry.reads and readers:
            level[entry.number] = min(readers) - 1
    chains = []
    for entry in nodes:
        for read in dict.fromkeys(entry.reads):
            chain = [read]
            for between in range(level[read] + 1, level[entry.number]):
                chain.append(len(level))
                level.append(between)
            chains.append([*chain, entry.number])
    return level, chains


def _columns(layers: Sequence[int], chains: Sequence[Sequence[int]], gap: float) -> list[float]:
    """x of every vertex: Sugiyama's method."""
    import igraph

    edges = [(a, b) for chain in chains for a, b in zip(chain, chain[1:], strict=False)]
    graph = igraph.Graph(n=len(layers), edges=edges, directed=True)
    return [x for x, _ in graph.layout_sugiyama(layers=list(layers), hgap=gap, maxiter=500).coords[: len(layers)]]
