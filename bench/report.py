"""What a run leaves: a table while it runs, a JSON file, a plot.

A row is a dict with "label" and "variant" (of the workload), "threads", "ratios" {rival: its time / fastbp's} and
whatever else its command measures.
"""

import json
import textwrap
from statistics import geometric_mean


class Table:
    """Columns of fixed width; every row is printed at once."""

    def __init__(self, **columns):
        """{title: width}; a negative width aligns to the left."""
        self.widths = columns.values()
        self.row(*columns)

    def row(self, *cells):
        texts = (f"{cell:<{-width}}" if width < 0 else f"{cell:>{width}}" for cell, width in zip(cells, self.widths))
        print("  ".join(texts).rstrip(), flush=True)


def best(ratios):
    """(rival, ratio) of the rival that comes closest."""
    return min(ratios.items(), key=lambda item: item[1])


def verdict(ratios):
    """Cells: the best rival and its ratio."""
    if not ratios:
        return "-", "-"
    rival, ratio = best(ratios)
    return rival, f"{ratio:.2f}"


def figure(value):
    """Cell: three digits at least; a dash for a contestant that did not take part."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def percent(share):
    """Cell: a share, or a dash where nothing was probed."""
    return "-" if share is None else f"{share:.0%}"


def summary(rows):
    """Lines: the geometric mean of the ratios to the best rival, and where fastbp loses."""
    lines = []
    for threads in sorted({row["threads"] for row in rows}):
        ratios = {f"{row['label']} {row['variant']}".strip(): best(row["ratios"])
                  for row in rows if row["threads"] == threads and row["ratios"]}
        if not ratios:
            continue
        mean = geometric_mean(ratio for _, ratio in ratios.values())
        lost = [f"{label} ({rival} {ratio:.2f})" for label, (rival, ratio) in ratios.items() if ratio < 1]
        text = (f"threads {threads}: geometric mean of best rival / fastbp {mean:.2f} over {len(ratios)} rows; "
                f"fastbp loses {len(lost)}" + (": " + ", ".join(lost) if lost else ""))
        lines.append(textwrap.fill(text, 120, subsequent_indent="    "))
    return "\n".join(lines)


def write_json(path, facts, rows):
    with open(path, "w") as file:
        json.dump({"machine": facts, "rows": rows}, file, indent=1)


def plot(path, title, rows):
    """Every rival's time over fastbp's, a panel per number of threads and variant; what lies left of 1 is lost."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    labels = list(dict.fromkeys(row["label"] for row in rows))
    rivals = list(dict.fromkeys(rival for row in rows for rival in row["ratios"]))
    panels = {}
    for row in rows:
        panels.setdefault((row["threads"], row["variant"]), []).append(row)
    figure = Figure(figsize=(2 + 4 * len(panels), 2 + 0.2 * len(labels)), layout="constrained")
    for axes, (threads, variant) in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], sorted(panels)):
        for rival, marker in zip(rivals, "osD^v"):
            points = [(row["ratios"][rival], labels.index(row["label"])) for row in panels[threads, variant]
                      if rival in row["ratios"]]
            axes.plot(*zip(*points), marker, label=rival, alpha=0.8)
        axes.axvline(1, color="black", linewidth=1)
        axes.set(xscale="log", xlabel="rival's time / fastbp's", ylim=(len(labels) - 0.5, -0.5),
                 title=f"{threads} thread{'s' * (threads > 1)} {variant}")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.set_yticks(range(len(labels)), labels)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(rivals))
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
