"""Callbacks: what happens between epochs of `fit`.

A callback is any object with some of these methods; `fit` calls them in the order the callbacks were given:

``on_train_begin(model)``, ``on_train_end(model)``
    before the first epoch, when `model.optimizer` is the optimizer of this fit, and after the last
``on_epoch_begin(model, epoch, logs)``, ``on_epoch_end(model, epoch, logs)``
    logs: {"loss": 0.31, "val_loss": 0.35, "accuracy": 0.9, ...} of this epoch, empty at its begin
``on_batch_end(model, batch, logs)``
    costs a call into Python per batch, so only callbacks that have it pay

Returning True from an ``_end`` stops the training. The ones here watch one entry of `logs`, the `monitor`:

mode
    "min" or "max", whether less or more is better; "auto": "min" for a name that ends in "loss", "max" for one that ends
    in "accuracy", and a ValueError for any other name, which only the caller can judge
better
    value < best - min_delta, or value > best + min_delta (absolute, as in Keras); NaN never is
patience
    so many epochs in a row without a better one (Keras' count, where torch's plateau waits one more)

A monitor that `logs` does not have is a ValueError at the end of the first epoch. State starts anew in `on_train_begin`,
so one instance can serve several fits, one after the other.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from . import arrays

__all__ = ["EarlyStopping", "ModelCheckpoint", "ReduceLROnPlateau"]

Logs = Mapping[str, float]


class _Monitor:
    """The best value so far of one entry of the logs, and the epoch it was seen in."""

    def __init__(self, monitor: str, mode: str, min_delta: float) -> None:
        if not isinstance(monitor, str):
            raise TypeError(f"monitor must be a string, got {arrays.describe(monitor)}")
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"mode must be 'auto', 'min' or 'max', got {mode!r}")
        if mode == "auto":
            if not monitor.endswith(("loss", "accuracy")):
                raise ValueError(f"mode must be 'min' or 'max' for monitor = {monitor!r}, got 'auto', which only"
                                 f" knows names that end in 'loss' or 'accuracy'")
            mode = "min" if monitor.endswith("loss") else "max"
        self.monitor = monitor
        self.mode = mode
        self.min_delta = arrays.number("min_delta", min_delta, low=0)
        self._forget()

    def _forget(self) -> None:
        self.best = math.inf if self.mode == "min" else -math.inf
        self.best_epoch: int | None = None

    def _improved(self, epoch: int, logs: Logs) -> bool:
        """Whether this epoch is better than the best before it, which it then replaces."""
        if self.monitor not in logs:
            raise ValueError(f"monitor must be one of {', '.join(map(repr, logs))}, got {self.monitor!r}")
        value = float(logs[self.monitor])
        better = value < self.best - self.min_delta if self.mode == "min" else value > self.best + self.min_delta
        if better:
            self.best, self.best_epoch = value, epoch
        return better


class EarlyStopping(_Monitor):
    """Stop when `monitor` has not become better for `patience` (>= 1) epochs in a row.

    With `restore_best` the model leaves `fit` with the parameters of the best epoch, also when training ran to its end;
    the optimizer's state is not taken back. After a fit, `best` and `best_epoch` tell which that was, and `stopped_epoch`
    where training was stopped, or None.
    """

    def __init__(self, monitor: str = "val_loss", patience: int = 5, min_delta: float = 0.0, mode: str = "auto",
                 restore_best: bool = True) -> None:
        super().__init__(monitor, mode, min_delta)
        self.patience = arrays.integer("patience", patience, least=1)
        self.restore_best = arrays.flag("restore_best", restore_best)

    def _forget(self) -> None:
        super()._forget()
        self.wait = 0
        self.stopped_epoch: int | None = None
        self._best_state: Mapping[str, Any] | None = None

    def on_train_begin(self, model: Any) -> None:
        self._forget()

    def on_epoch_end(self, model: Any, epoch: int, logs: Logs) -> bool:
        if self._improved(epoch, logs):
            self.wait = 0
            if self.restore_best:
                self._best_state = model.state_dict()
            return False
        self.wait += 1
        if self.wait < self.patience:
            return False
        self.stopped_epoch = epoch
        return True

    def on_train_end(self, model: Any) -> None:
        if self._best_state is not None:
            model.load_state_dict(self._best_state)
            self._best_state = None


class ModelCheckpoint(_Monitor):
    """Save the model (`model.save`) at the end of every epoch in which `monitor` became better.

    `path` may hold fields of `str.format`: the epoch's number and the entries of `logs`, as in
    ``"net-{epoch:03d}-{val_loss:.4f}.safetensors"``; without fields each save replaces the one before, atomically. With
    ``save_best_only=False`` every epoch is saved, and `monitor` and `mode` do not matter. `saved` lists the paths written.
    """

    def __init__(self, path: str | os.PathLike[str], monitor: str = "val_loss", mode: str = "auto",
                 save_best_only: bool = True) -> None:
        super().__init__(monitor, mode, min_delta=0.0)
        self.path = os.fspath(path) if isinstance(path, os.PathLike) else path
        if not isinstance(self.path, str):
            raise TypeError(f"path must be a str or an os.PathLike of str, got {arrays.describe(path)}")
        self.save_best_only = arrays.flag("save_best_only", save_best_only)

    def _forget(self) -> None:
        super()._forget()
        self.saved: list[str] = []

    def on_train_begin(self, model: Any) -> None:
        self._forget()

    def on_epoch_end(self, model: Any, epoch: int, logs: Logs) -> None:
        if self.save_best_only and not self._improved(epoch, logs):
            return
        path = self._formatted(epoch, logs)
        model.save(path)
        if path not in self.saved:
            self.saved.append(path)

    def _formatted(self, epoch: int, logs: Logs) -> str:
        fields = {**logs, "epoch": epoch}
        try:
            return self.path.format_map(fields)
        except (LookupError, ValueError, AttributeError, TypeError) as error:
            raise ValueError(f"path must hold only the fields {', '.join(map(repr, fields))} in the syntax of"
                             f" str.format, got {self.path!r}") from error


class ReduceLROnPlateau(_Monitor):
    """``optimizer.lr = max(lr * factor, min_lr)`` when `monitor` has not become better for `patience` epochs in a row.

    0 < factor < 1, patience >= 1, min_lr >= 0. The `cooldown` (>= 0) epochs after a reduction do not count, as in torch
    (in Keras the last of them does). The optimizer's rate must be a number: with a schedule, which would undo the
    reduction, TypeError at the start of the fit. `reductions` lists (epoch, new rate).
    """

    def __init__(self, monitor: str = "val_loss", factor: float = 0.1, patience: int = 10, min_delta: float = 1e-4,
                 cooldown: int = 0, min_lr: float = 0.0, mode: str = "auto") -> None:
        super().__init__(monitor, mode, min_delta)
        self.factor = arrays.number("factor", factor, low=0, high=1, open_low=True, open_high=True)
        self.patience = arrays.integer("patience", patience, least=1)
        self.cooldown = arrays.integer("cooldown", cooldown, least=0)
        self.min_lr = arrays.number("min_lr", min_lr, low=0)

    def _forget(self) -> None:
        super()._forget()
        self.wait = 0
        self.cooldown_left = 0
        self.reductions: list[tuple[int, float]] = []

    def on_train_begin(self, model: Any) -> None:
        self._forget()
        if callable(model.optimizer.lr):
            raise TypeError(f"optimizer.lr must be a number for ReduceLROnPlateau, got the schedule {model.optimizer.lr!r}")

    def on_epoch_end(self, model: Any, epoch: int, logs: Logs) -> None:
        if self._improved(epoch, logs):
            self.wait = 0
        elif not self.cooldown_left:
            self.wait += 1
        self.cooldown_left = max(self.cooldown_left - 1, 0)
        optimizer = model.optimizer
        if self.wait >= self.patience and optimizer.lr > self.min_lr:
            optimizer.lr = max(optimizer.lr * self.factor, self.min_lr)
            self.reductions.append((epoch, optimizer.lr))
            self.wait, self.cooldown_left = 0, self.cooldown
