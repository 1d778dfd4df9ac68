"""Check of `backward` against finite differences.

For every element v of every parameter, and of the input, with everything in float64 and L the loss as a number::

    numeric = (L(v + step) - L(v - step)) / (2 step)
    error   = |analytic - numeric| / max(1, |analytic|, |numeric|)

so the error is relative for large gradients and absolute for small ones. With step = 1e-6 the truncation is about 1e-12 and
the rounding about 2e-10 times the loss, far below a tolerance of 1e-7 for a loss of the usual size.

Where that error is too large, the step is to blame in two cases, which are looked into before the gradient is:

- a step too long (a kink between v and v ± step) or too short (rounding, when L is in the thousands): a tenth of the step,
  and 10, 100 and 1000 times the step are tried too, and the smallest error counts (from about 10⁷ on no step is right:
  scale such a loss down, or use a mean);
- a kink at v itself, a ReLU whose input is 0 for one: the differences to the right and to the left do not approach each
  other with a shorter step. No derivative exists there, so the element is skipped and counted as a kink.

Parameters of more than 200 elements are checked in 200 of them, drawn with a fixed seed; the report says so.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import arrays

__all__ = ["GradientReport", "GradientRow", "check_gradients"]

SAMPLE = 200
SEED = 0
OTHER_STEPS = (0.1, 10.0, 100.0, 1000.0)


@dataclass(frozen=True)
class GradientRow:
    """One parameter, or the input: its worst element and how many were looked at."""

    name: str
    shape: tuple[int, ...]
    checked: int  # elements compared; the rest are kinks or not in the sample
    kinks: int  # elements skipped because no derivative exists there
    max_error: float  # 0.0 when nothing was compared
    worst: tuple[int, ...]  # the index of that error, with the two derivatives there
    analytic: float
    numeric: float

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def sampled(self) -> bool:
        return self.checked + self.kinks < self.size


@dataclass(frozen=True)
class GradientReport:
    """What `check_gradients` found. `ok` when every row has an error of at most `tolerance` and something to show for it."""

    rows: tuple[GradientRow, ...]
    step: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return all(self._verdict(row) == "ok" for row in self.rows)

    @property
    def max_error(self) -> float:
        return max((row.max_error for row in self.rows), default=0.0)

    def _verdict(self, row: GradientRow) -> str:
        if row.checked == 0 and row.size > 0:
            return "only kinks"  # a check that could not fail is no check
        return "ok" if row.max_error <= self.tolerance else "WRONG"

    def __str__(self) -> str:
        head = ("name", "shape", "checked", "kinks", "max error", "at", "analytic", "numeric", "")
        table = [head] + [
            (row.name, str(row.shape), f"{row.checked} of {row.size}" if row.sampled else str(row.checked), str(row.kinks),
             f"{row.max_error:.1e}", str(row.worst), f"{row.analytic:.9g}", f"{row.numeric:.9g}", self._verdict(row))
            for row in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
        verdicts = {self._verdict(row) for row in self.rows}
        end = "GRADIENTS DO NOT AGREE" if "WRONG" in verdicts else "gradients agree" if self.ok else "NOT CHECKED: only kinks found"
        end += f": max error {self.max_error:.1e}, tolerance {self.tolerance:g}, step {self.step:g}"
        if any(row.sampled for row in self.rows):
            end += f"; of a large array a fixed sample of {SAMPLE} elements is checked"
        return "\n".join([*lines, end])


def check_gradients(model: Any, loss: Any, x: ArrayLike, y: ArrayLike, *, step: float = 1e-6,
                    tolerance: float = 1e-7) -> GradientReport:
    """Compare `model.backward` with central differences of `loss`, in float64 (formulas above).

    model
        left untouched: the check works on a float64 copy, with dropout off
    loss
        any object with ``value_and_grad(prediction, target)``
    x, y
        a batch as for `forward` and the loss; a few rows suffice
    step, tolerance
        > 0 and finite

    A row per parameter and one named "input", or "input 0", "input 1", ... of the columns that are no categories. Raises what `forward` and the loss raise for bad input, ValueError for a
    loss that is not finite here, TypeError for a loss without `value_and_grad`.
    """
    for name, value in (("step", step), ("tolerance", tolerance)):
        arrays.number(name, value, low=0, open_low=True)
    if not callable(getattr(loss, "value_and_grad", None)):
        raise TypeError(f"loss must have value_and_grad(prediction, target), got {arrays.describe(loss)}")
    same_dtype = np.dtype(model.dtype) == np.float64
    model = copy.deepcopy(model) if same_dtype else model.astype("float64")
    at_start, dout = loss.value_and_grad(model.forward(x, training=False), y)  # x as it came: forward judges it
    if not math.isfinite(at_start):
        raise ValueError(f"loss must be finite where gradients are checked, got {at_start}")
    dx = model.backward(dout)
    gradients = {name: np.array(gradient) for name, gradient in model.gradients.items()}
    several = isinstance(dx, list)
    inputs: Any = [np.array(part, np.float64) for part in x] if several else np.array(x, np.float64)  # copies, to be perturbed

    def value() -> float:
        return float(loss.value_and_grad(model.forward(inputs, training=False), y)[0])

    checked = [(name, model.parameters[name], gradient) for name, gradient in gradients.items()]
    rows = [_row(name, array, gradient, np.arange(array.size), value, float(at_start), step, tolerance) for name, array, gradient in checked]
    first, categories = 0, model.category_columns
    for i, (part, dpart) in enumerate(zip(inputs, dx, strict=True) if several else [(inputs, dx)]):
        quantities = [column not in categories for column in range(first, first + part.shape[1])]   # categories cannot be moved a little
        if any(quantities):
            elements = np.arange(part.size).reshape(part.shape)[:, quantities].ravel()
            rows.append(_row(f"input {i}" if several else "input", part, dpart, elements, value, float(at_start), step, tolerance))
        first += part.shape[1]
    return GradientReport(tuple(rows), step, tolerance)


def _row(name: str, array: NDArray[np.float64], gradient: NDArray[np.float64], elements: NDArray[np.intp], value: Callable[[], float],
         at_start: float, step: float, tolerance: float) -> GradientRow:
    """Check these elements of one array, which `value` reads; each is put back after its turn."""
    if len(elements) > SAMPLE:
        elements = np.sort(np.random.default_rng(SEED).choice(elements, SAMPLE, replace=False))
    checked, kinks, worst = 0, 0, (-1.0, (), math.nan, math.nan)
    for element in elements:
        index = tuple(int(i) for i in np.unravel_index(element, array.shape))
        here, analytic = array[index], float(gradient[index])

        def moved(by: float) -> float:
            array[index] = here + by  # noqa: B023  (called in this turn only)
            result = value()
            array[index] = here  # noqa: B023
            return result

        error, numeric = _compare(analytic, moved, step)
        if not error <= tolerance:
            error, numeric = min((error, numeric), *(_compare(analytic, moved, step * s) for s in OTHER_STEPS))
            if not error <= tolerance and _is_kink(moved, at_start, step, tolerance):
                kinks += 1
                continue
        checked += 1
        if error > worst[0]:
            worst = (error, index, analytic, numeric)
    return GradientRow(name, array.shape, checked, kinks, max(worst[0], 0.0), *worst[1:])


def _compare(analytic: float, moved: Callable[[float], float], step: float) -> tuple[float, float]:
    """(error, numeric); an error that is not a number counts as infinite."""
    numeric = (moved(step) - moved(-step)) / (2 * step)
    error = abs(analytic - numeric) / max(1.0, abs(analytic), abs(numeric))
    return (error if math.isfinite(error) else math.inf), numeric


def _is_kink(moved: Callable[[float], float], here: float, step: float, tolerance: float) -> bool:
    """Whether right and left difference stay apart as the step shrinks.

    Their gap is step * |L''| for a smooth loss, so a tenth of the step makes it a tenth; at a kink it stays. Gaps within
    the rounding error of L, or the tolerance, say nothing.
    """

    def gap(step: float) -> tuple[float, float]:
        ahead, behind = moved(step), moved(-step)
        right, left = (ahead - here) / step, (here - behind) / step
        noise = 16 * np.finfo(np.float64).eps * max(abs(ahead), abs(behind), abs(here)) / step
        return abs(right - left), noise + tolerance * max(1.0, abs(right), abs(left))

    wide, _ = gap(step)
    narrow, floor = gap(step / 10)
    return narrow > floor and narrow > wide / 2
