"""Learning-rate schedules: functions of the step number, given to an optimizer in place of a number::

    fb.SGD(lr=fb.schedules.WarmUp(fb.schedules.Cosine(lr=0.1, steps=9_000), steps=1_000))

A schedule is a callable ``step -> rate``. `step` counts optimizer steps (minibatches, not epochs) from 0, so step 0 has
the first rate; with n rows, batches of b and e epochs a fit takes ``e * ceil(n / b)`` of them. The ones here are frozen
dataclasses: plain data that compares, copies and pickles. Any other callable will do as well.

Constructors raise TypeError for what is not a number and ValueError for a number out of its range; calling a schedule
raises TypeError for a step that is not an integer and ValueError for a negative one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import arrays

__all__ = ["Cosine", "Exponential", "OneCycle", "Schedule", "StepDecay", "WarmUp"]

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class StepDecay:
    """``lr * gamma ** (step // step_size)``: multiplied by gamma every `step_size` steps (torch's StepLR).

    lr > 0, gamma > 0, step_size >= 1.
    """

    lr: float
    step_size: int
    gamma: float = 0.1

    def __post_init__(self) -> None:
        _keep_positive(self, "lr")
        _keep_count(self, "step_size")
        _keep_positive(self, "gamma")

    def __call__(self, step: int) -> float:
        return _power(self, self.lr, self.gamma, _index(step) // self.step_size)


@dataclass(frozen=True)
class Exponential:
    """``lr * gamma ** step`` (torch's ExponentialLR).

    lr > 0, gamma > 0; a gamma above 1 grows, which is how one searches for the largest usable rate. ValueError at a
    step whose rate is too large for a float.
    """

    lr: float
    gamma: float

    def __post_init__(self) -> None:
        _keep_positive(self, "lr")
        _keep_positive(self, "gamma")

    def __call__(self, step: int) -> float:
        return _power(self, self.lr, self.gamma, _index(step))


@dataclass(frozen=True)
class Cosine:
    """``lr_min + (lr - lr_min) * (1 + cos(pi * step / steps)) / 2``, and `lr_min` from step `steps` on.

    Half a cosine without restarts (Loshchilov & Hutter 2017, equation 5). torch's CosineAnnealingLR climbs again
    after `T_max`; this stays down. lr > 0, 0 <= lr_min <= lr, steps >= 1.
    """

    lr: float
    steps: int
    lr_min: float = 0.0

    def __post_init__(self) -> None:
        _keep_positive(self, "lr")
        _keep_count(self, "steps")
        _keep_number(self, "lr_min", low=0, high=self.lr)

    def __call__(self, step: int) -> float:
        step = _index(step)
        return self.lr_min if step >= self.steps else _anneal(self.lr, self.lr_min, step / self.steps)


@dataclass(frozen=True)
class WarmUp:
    """``schedule(0) * (step + 1) / (steps + 1)`` during the first `steps` steps, then ``schedule(step - steps)``.

    A straight line from just above 0 that meets the wrapped schedule where that one starts (Goyal et al. 2017). No
    step is wasted on a rate of 0. `schedule` is a schedule, or a number > 0: a constant rate. steps >= 1.
    """

    schedule: Schedule | float
    steps: int

    def __post_init__(self) -> None:
        if not callable(self.schedule):
            _keep_positive(self, "schedule")
        _keep_count(self, "steps")

    def __call__(self, step: int) -> float:
        step = _index(step)
        rate = self.schedule(max(step - self.steps, 0)) if callable(self.schedule) else self.schedule
        return rate if step >= self.steps else rate * (step + 1) / (self.steps + 1)


@dataclass(frozen=True)
class OneCycle:
    """Up from ``lr_max / div_factor`` to `lr_max`, then down to ``lr_max / div_factor / final_div_factor``.

    torch's OneCycleLR (cosine annealing, two phases; Smith & Topin 2018): the peak is at step ``pct_start * steps - 1``
    and the end at step ``steps - 1``; where torch raises beyond the end, the last rate stays. lr_max > 0, steps >= 1,
    0 <= pct_start <= 1, div_factor >= 1, final_div_factor >= 1.
    """

    lr_max: float
    steps: int
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4

    def __post_init__(self) -> None:
        _keep_positive(self, "lr_max")
        _keep_count(self, "steps")
        _keep_number(self, "pct_start", low=0, high=1)
        _keep_number(self, "div_factor", low=1)
        _keep_number(self, "final_div_factor", low=1)

    def __call__(self, step: int) -> float:
        step = min(_index(step), self.steps - 1)
        first = self.lr_max / self.div_factor
        last = first / self.final_div_factor
        peak, end = self.pct_start * self.steps - 1, self.steps - 1
        if step <= peak:
            return _anneal(first, self.lr_max, step / peak if peak else 1.0)
        return _anneal(self.lr_max, last, (step - peak) / (end - peak))


def _anneal(start: float, end: float, fraction: float) -> float:
    """From start (fraction 0) to end (fraction 1) along half a cosine."""
    return end + (start - end) / 2 * (math.cos(math.pi * fraction) + 1)


def _power(schedule: Any, lr: float, gamma: float, exponent: int) -> float:
    """lr * gamma ** exponent, or ValueError where a growing rate has left the range of a float."""
    try:
        rate = lr * gamma**exponent
    except OverflowError:
        rate = math.inf
    if not math.isfinite(rate):
        raise ValueError(f"lr must stay finite, {schedule} does not after {exponent} multiplications by gamma")
    return rate


def _index(step: int) -> int:
    return arrays.integer("step", step, least=0)


def _keep_number(schedule: Any, name: str, **limits: Any) -> None:
    """Check a field of a frozen dataclass and keep it as a plain float."""
    object.__setattr__(schedule, name, arrays.number(name, getattr(schedule, name), **limits))


def _keep_positive(schedule: Any, name: str) -> None:
    _keep_number(schedule, name, low=0, open_low=True)


def _keep_count(schedule: Any, name: str) -> None:
    """As `_keep_number`, for a number of steps: an int of at least 1."""
    object.__setattr__(schedule, name, arrays.integer(name, getattr(schedule, name), least=1))
