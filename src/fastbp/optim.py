"""Optimizers: rules that turn gradients into steps. Formulas and defaults are those of torch.optim.

An optimizer belongs to the first model that it steps; its state has the layout of the model's flat parameters and lives on from one
`fit` to the next. `lr` is a number or a schedule, a callable(step) -> float with steps counted from 0 (see fastbp.schedules).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from . import _core, arrays

LearningRate = float | Callable[[int], float]


class Optimizer:
    """The shared part: the learning rate, the state arrays and whom they belong to."""

    kind: str
    state_names: tuple[str, ...] = ()

    def __init__(self, lr: LearningRate, weight_decay: float):
        self.lr = lr
        self.weight_decay = arrays.number("weight_decay", weight_decay, low=0)
        self.steps = 0                       # updates made
        self.state: list[np.ndarray] = []    # flat arrays, one per name in use
        self._owner: weakref.ref | None = None
        self._pending: dict[str, Any] | None = None   # a loaded state that waits for its model

    @property
    def lr(self) -> LearningRate:
        """The learning rate, or the schedule that gives it. May be set between steps. Not negative, finite."""
        return self._lr

    @lr.setter
    def lr(self, lr: LearningRate) -> None:
        self._lr = lr if callable(lr) else arrays.number("lr", lr, low=0)

    def rate(self, step: int) -> float:
        """The learning rate of the step with this number, counted from 0."""
        return arrays.number(f"lr(step={step})", self._lr(step), low=0) if callable(self._lr) else self._lr

    def rates(self, count: int) -> np.ndarray:
        """The next `count` learning rates as float64."""
        if not callable(self._lr):
            return np.full(count, self._lr)
        return np.fromiter((self.rate(step) for step in range(self.steps, self.steps + count)), np.float64, count)

    def hyperparameters(self) -> dict[str, Any]:
        """The rule's numbers in the engine's terms."""
        return {"weight_decay": self.weight_decay}

    def rule(self, model: Any, clip_norm: float = 0.0) -> _core.UpdateRule:
        """The update rule over the model's parameter tensors."""
        return _core.UpdateRule(self.kind, model.slots(), clip_norm=clip_norm, **self.hyperparameters())

    def bind(self, model: Any) -> None:
        """Takes possession of `model`, with fresh or loaded state; RuntimeError when this optimizer has another one already."""
        owner = self._owner() if self._owner is not None else None
        if owner is model:
            return
        if self._owner is not None:
            raise RuntimeError("this optimizer belongs to another model: make a new one, or load its state_dict into a new one")
        size, dtype = model.flat_parameters.size, model.dtype
        if self._pending is not None:
            self._restore(model, self._pending)
        elif not self.state:
            self.state = [arrays.aligned_zeros(size, dtype) for _ in self.state_names]
        elif any(array.shape != (size,) or array.dtype != dtype for array in self.state):
            raise RuntimeError("this optimizer's state was made for a model of another shape or dtype")
        self._owner = weakref.ref(model)

    def step(self, model: Any) -> None:
        """parameters <- rule(parameters, model.gradients), in place. RuntimeError when the optimizer belongs to another model."""
        self.bind(model)
        state1, state2 = (*self.state, None, None)[:2]
        self.rule(model).step(self.rate(self.steps), self.steps + 1, model.flat_gradients, model.flat_parameters, state1, state2)
        self.steps += 1
        model.parameters_changed()

    def state_dict(self) -> dict[str, Any]:
        """{"step": updates made, "<state>.<parameter>": array, ...}; copies. Before the first step there are no arrays."""
        result: dict[str, Any] = {"step": self.steps}
        owner = self._owner() if self._owner is not None else None
        if owner is None:
            return dict(self._pending) if self._pending is not None else result
        for name, array in zip(self.state_names, self.state, strict=True):
            result |= {f"{name}.{key}": view.copy() for key, view in owner.views(array).items()}
        return result

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes a state_dict back: at once when the optimizer has a model, else when it first steps one.

        KeyError-free: ValueError names what is missing, superfluous or misshaped, TypeError what is no mapping or no number.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a mapping, got {arrays.describe(state)}")
        owner = self._owner() if self._owner is not None else None
        arrays.integer('state["step"]', state.get("step"), least=0)
        if owner is None:
            self._owner, self._pending = None, dict(state)
            self.steps = int(state["step"])
        else:
            self._restore(owner, state)

    def _restore(self, model: Any, state: Mapping[str, Any]) -> None:
        step = arrays.integer('state["step"]', state.get("step"), least=0)
        fresh = [arrays.aligned_zeros(model.flat_parameters.size, model.dtype) for _ in self.state_names]
        expected = {f"{name}.{key}": view for name, array in zip(self.state_names, fresh, strict=True)
                    for key, view in model.views(array).items()}
        if set(state) != {"step"}:   # a state taken before the first step has no arrays: zeros
            if missing := expected.keys() - state.keys():
                raise ValueError(f"state lacks {sorted(missing)[0]!r}")
            if extra := state.keys() - expected.keys() - {"step"}:
                raise ValueError(f"state has {sorted(extra)[0]!r}, which this optimizer does not know")
            for key, view in expected.items():
                given = arrays.real(f'state["{key}"]', state[key])
                if given.shape != view.shape:
                    raise ValueError(f'state["{key}"] must have shape {view.shape}, got {arrays.describe(given)}')
                view[...] = given
        self.state, self.steps, self._pending = fresh, step, None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_owner": None}   # a copy serves the first model that it meets


class SGD(Optimizer):
    """g = dL/dp + weight_decay p;  v = momentum v + g;  p -= lr v,  or p -= lr (g + momentum v) with nesterov; without momentum
    p -= lr g (torch.optim.SGD; docs/by-hand S20-S22).

    lr >= 0 or a schedule; 0 <= momentum < 1; nesterov needs momentum > 0; weight_decay >= 0.
    """

    kind = "sgd"

    def __init__(self, lr: LearningRate, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0):
        self.momentum = arrays.number("momentum", momentum, low=0, high=1, open_high=True)
        self.nesterov = arrays.flag("nesterov", nesterov)
        if nesterov and not self.momentum:
            raise ValueError(f"nesterov needs a momentum above 0, got momentum={momentum!r}")
        self.state_names = ("velocity",) if self.momentum else ()
        super().__init__(lr, weight_decay)

    def hyperparameters(self) -> dict[str, Any]:
        return super().hyperparameters() | {"momentum": self.momentum, "nesterov": self.nesterov}

    def __repr__(self) -> str:
        return f"SGD(lr={self.lr!r}, momentum={self.momentum!r}, nesterov={self.nesterov!r}, weight_decay={self.weight_decay!r})"


class Adam(Optimizer):
    """g = dL/dp + weight_decay p;  m = β1 m + (1-β1) g;  v = β2 v + (1-β2) g²;
    p -= lr/(1-β1ᵗ) m / (√v/√(1-β2ᵗ) + eps), t counted from 1 (torch.optim.Adam; Kingma & Ba 2015).

    lr >= 0 or a schedule; betas in [0, 1); eps > 0; weight_decay >= 0.
    """

    kind = "adam"
    state_names = ("m", "v")
    decoupled = False

    def __init__(self, lr: LearningRate = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0):
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise TypeError(f"betas must be a pair of numbers, got {arrays.describe(betas)}")
        self.betas = tuple(arrays.number(f"betas[{i}]", beta, low=0, high=1, open_high=True) for i, beta in enumerate(betas))
        self.eps = arrays.number("eps", eps, low=0, open_low=True)
        super().__init__(lr, weight_decay)

    def hyperparameters(self) -> dict[str, Any]:
        return super().hyperparameters() | {"betas": self.betas, "eps": self.eps, "decoupled": self.decoupled}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(lr={self.lr!r}, betas={self.betas!r}, eps={self.eps!r}, weight_decay={self.weight_decay!r})"


class AdamW(Adam):
    """Adam with the decay taken off the parameter, not put into the gradient: p -= lr weight_decay p first (torch.optim.AdamW;
    Loshchilov & Hutter 2019)."""

    decoupled = True

    def __init__(self, lr: LearningRate = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 1e-2):
        super().__init__(lr, betas, eps, weight_decay)
