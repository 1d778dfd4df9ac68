"""Losses: called (prediction, target), they give a float; `value_and_grad` gives the float and dL/dprediction.

With weights w_i per row the batch's loss is Σ w_i l_i / Σ w_i. Reductions::

    "mean"       over all elements of the batch
    "batchmean"  sum over outputs, mean over the batch
    "sum"        sum over everything; weights multiply and nothing is divided

Values are summed in double, in an order that depends on the shape alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _core, arrays

REDUCTIONS = ("mean", "batchmean", "sum")


class Loss:
    """The shared part: conversion of predictions and targets, and the call. A subclass names its kernel and its parameter."""

    kernel: str
    parameter = 0.0
    scale = 1.0
    limit = float("inf")             # of logits: the value counts as if the probability were within [e^-limit, 1 - e^-limit]
    reported = 1.0                   # factor on the value alone
    threshold: float | None = None   # of "accuracy": p > threshold; NaN: argmax; None: the loss has no notion of a right answer
    rowwise = False                  # a row has one loss, not one per element

    def __init__(self, reduction: str = "mean"):
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}, got {reduction!r}")
        self.reduction = reduction

    def rule(self, outputs: int) -> _core.LossRule:
        """This loss over `outputs` columns in the engine's terms."""
        per_row = outputs if self.reduction == "mean" and not self.rowwise else 1
        return _core.LossRule(_core.LOSSES[self.kernel], self.reduction == "sum", per_row, self.scale, self.parameter, limit=self.limit, reported=self.reported)

    def target(self, name: str, value: Any, rows: int, outputs: int, dtype: np.dtype) -> tuple[np.ndarray | None, np.ndarray | None]:
        """(values (rows, outputs), None) or (None, labels (rows,)), converted and checked. (B,) is accepted for (B, 1)."""
        array = arrays.real(name, value)
        if array.ndim == 1 and outputs == 1:
            array = array[:, np.newaxis]
        if array.shape != (rows, outputs):
            also = f" or ({rows},)" if outputs == 1 else ""
            raise ValueError(f"{name} must have shape ({rows}, {outputs}){also}, got {arrays.describe(array)}")
        return self.check_values(name, arrays.convert(array, dtype)), None

    def check_values(self, name: str, target: np.ndarray) -> np.ndarray:
        """A subclass' own condition on the targets."""
        return target

    def _evaluate(self, prediction: Any, target: Any, sample_weight: Any, gradient: bool) -> tuple[float, np.ndarray | None]:
        p = arrays.real("prediction", prediction)
        dtype = np.dtype(np.float32 if p.dtype.kind == "f" and p.dtype.itemsize == 4 else np.float64)
        p = arrays.matrix("prediction", p, dtype)
        rows, outputs = p.shape
        if rows == 0:
            raise ValueError(f"prediction must have at least one row, got {arrays.describe(p)}: the loss of an empty batch is not defined")
        t, label = self.target("target", target, rows, outputs, dtype)
        w = arrays.sample_weight(sample_weight, dtype, rows)
        dp = np.empty_like(p) if gradient else None
        return self.rule(outputs).value(p, t, label, w, dp), dp

    def __call__(self, prediction: Any, target: Any, sample_weight: Any = None) -> float:
        """L(prediction (B, O), target). TypeError or ValueError for what does not fit."""
        return self._evaluate(prediction, target, sample_weight, False)[0]

    def value_and_grad(self, prediction: Any, target: Any, sample_weight: Any = None) -> tuple[float, np.ndarray]:
        """(L, dL/dprediction (B, O)); float32 predictions give a float32 gradient, all others float64."""
        return self._evaluate(prediction, target, sample_weight, True)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments as plain data."""
        return {"reduction": self.reduction}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.config().items())})"


class MSELoss(Loss):
    """L = scale * (p - y)² reduced; dL/dp = 2 scale (p - y) reduced alike (docs/by-hand/losses.md; S13 has scale 1, S14 and S15 scale ½).

    reduction "mean", "batchmean" or "sum"; scale a positive number.
    """

    kernel = "mse"

    def __init__(self, reduction: str = "mean", scale: float = 1.0):
        super().__init__(reduction)
        self.scale = arrays.number("scale", scale, low=0, open_low=True)

    def config(self) -> dict[str, Any]:
        return {"reduction": self.reduction, "scale": self.scale}


class L1Loss(Loss):
    """``L = |p - y|`` reduced; dL/dp = sign(p - y), 0 at 0 (torch.nn.L1Loss)."""

    kernel = "l1"


class HuberLoss(Loss):
    """``L = d²/2 for |d| <= delta, else delta (|d| - delta/2)``, with d = p - y (torch.nn.HuberLoss). delta > 0."""

    kernel = "huber"

    def __init__(self, delta: float = 1.0, reduction: str = "mean"):
        super().__init__(reduction)
        self.parameter = self.delta = arrays.number("delta", delta, low=0, open_low=True)

    def config(self) -> dict[str, Any]:
        return {"delta": self.delta, "reduction": self.reduction}


class QuantileLoss(Loss):
    """``L = q |d| for p < y, (1 - q) |d| for p > y``, with d = p - y; dL/dp = -q, 1 - q, 0 at 0. Its minimum is the q-quantile of y (Koenker &
    Bassett 1978; sklearn.metrics.mean_pinball_loss). 0 < quantile < 1."""

    kernel = "quantile"

    def __init__(self, quantile: float = 0.5, reduction: str = "mean"):
        super().__init__(reduction)
        self.parameter = self.quantile = arrays.number("quantile", quantile, low=0, high=1, open_low=True, open_high=True)

    def config(self) -> dict[str, Any]:
        return {"quantile": self.quantile, "reduction": self.reduction}


class PoissonLoss(Loss):
    """L = e^z - y z + y log y - y, half the Poisson deviance of rate e^z; dL/dz = e^z - y. For predictions z that are logarithms of rates, and
    targets y >= 0, with 0 log 0 = 0 (torch.nn.PoissonNLLLoss(log_input=True) has not the terms of y alone)."""

    kernel = "poisson"

    def check_values(self, name: str, target: np.ndarray) -> np.ndarray:
        if (target < 0).any():
            row, column = (int(i) for i in np.argwhere(target < 0)[0])
            raise ValueError(f"{name} must not be negative, got {target[row, column]} in row {row}, column {column}")
        return target


class _Binary(Loss):
    """Targets are 0 or 1, or probabilities."""

    def check_values(self, name: str, target: np.ndarray) -> np.ndarray:
        wrong = (target < 0) | (target > 1)
        if wrong.any():
            row, column = (int(i) for i in np.argwhere(wrong)[0])
            raise ValueError(f"{name} must lie between 0 and 1, got {target[row, column]} in row {row}, column {column}")
        return target


class BCELoss(_Binary):
    """L = -[y log p + (1-y) log(1-p)]; dL/dp = (p - y) / (p (1-p)) (docs/by-hand S4). For predictions that are probabilities.

    As torch.nn.BCELoss: logarithms are not taken below -100, the denominator not below 1e-12, so both stay finite on [0, 1].
    `fit` on a model that ends in Sigmoid computes the pair as BCEWithLogitsLoss does, with gradient p - y.
    """

    kernel = "bce"
    threshold = 0.5


class BCEWithLogitsLoss(_Binary):
    """``L = max(z, 0) - z y + log1p(e^-|z|)``; dL/dz = sigmoid(z) - y (docs/by-hand/losses.md, S9). For predictions that are logits."""

    kernel = "bce_logits"
    threshold = 0.0


class CrossEntropyLoss(Loss):
    """L = logsumexp(s) - s_y; dL/ds = softmax(s) - onehot(y) (docs/by-hand S16). Targets are integer labels (B,) or probabilities (B, C).

    label_smoothing e in [0, 1] replaces the target t by (1 - e) t + e / C (torch.nn.CrossEntropyLoss). A row has one loss, so "mean"
    and "batchmean" are the same.
    """

    kernel = "cross_entropy"
    threshold = float("nan")
    rowwise = True

    def __init__(self, label_smoothing: float = 0.0, reduction: str = "mean"):
        super().__init__(reduction)
        self.parameter = self.label_smoothing = arrays.number("label_smoothing", label_smoothing, low=0, high=1)

    def target(self, name: str, value: Any, rows: int, outputs: int, dtype: np.dtype) -> tuple[np.ndarray | None, np.ndarray | None]:
        array = arrays.real(name, value)
        if array.dtype.kind in "iub" and array.ndim == 1:
            return None, arrays.labels(name, array, rows, outputs)
        if array.ndim != 2:
            raise (TypeError if array.ndim == 1 else ValueError)(
                f"{name} must hold integer labels of shape ({rows},) or probabilities of shape ({rows}, {outputs}), got {arrays.describe(array)}")
        if array.shape != (rows, outputs):
            raise ValueError(f"{name} must have shape ({rows},) or ({rows}, {outputs}), got {arrays.describe(array)}")
        probabilities = arrays.convert(array, dtype)
        if (probabilities < 0).any():
            row, column = (int(i) for i in np.argwhere(probabilities < 0)[0])
            raise ValueError(f"{name} must not be negative, got {probabilities[row, column]} in row {row}, column {column}")
        return probabilities, None

    def config(self) -> dict[str, Any]:
        return {"label_smoothing": self.label_smoothing, "reduction": self.reduction}
