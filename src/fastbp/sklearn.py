"""scikit-learn's multilayer perceptrons on this engine: `from fastbp.sklearn import MLPClassifier, MLPRegressor` (extra: fastbp[sklearn]).

They are subclasses of scikit-learn's: parameters, validation, messages and fitted attributes are its own, and the random numbers are drawn in
its order, so the same `random_state` gives the same initial weights, batches and loss curve. What computes is replaced: an epoch is one native
call. Beside that they take what the original does not (see the classes); all of it is off by default.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

import numpy as np
from scipy.sparse import issparse
from sklearn import neural_network
from sklearn.base import _fit_context, is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network._stochastic_optimizers import AdamOptimizer, SGDOptimizer
from sklearn.utils import compute_sample_weight
from sklearn.utils._param_validation import Interval, StrOptions, validate_parameter_constraints
from sklearn.utils.validation import _check_sample_weight, validate_data

from . import _core, arrays, runtime, training
from .graph import Sequential
from .layers import ELU, GELU, Dropout, Identity, LeakyReLU, Linear, ReLU, Sigmoid, SiLU, Softplus, Tanh
from .losses import BCEWithLogitsLoss, CrossEntropyLoss, HuberLoss, L1Loss, Loss, MSELoss, PoissonLoss, QuantileLoss

__all__ = ["MLPClassifier", "MLPRegressor"]

ACTIVATIONS = {"identity": Identity, "logistic": Sigmoid, "tanh": Tanh, "relu": ReLU, "leaky_relu": LeakyReLU, "elu": ELU, "gelu": GELU, "silu": SiLU,
               "softplus": Softplus}


@dataclass
class _Csr:
    """A sparse matrix as the engine reads it: row i has values data[indptr[i] : indptr[i + 1]] in columns indices[...]."""

    shape: tuple[int, int]
    indptr: np.ndarray
    indices: np.ndarray
    data: np.ndarray

    @classmethod
    def of(cls, x: Any, dtype: np.dtype) -> _Csr:
        """A SciPy matrix, converted where it has to be."""
        x = x.tocsr()
        if x.shape[1] > np.iinfo(np.int32).max:
            raise ValueError(f"X must have at most {np.iinfo(np.int32).max} columns, got {x.shape[1]}")
        return cls(x.shape, arrays.convert(x.indptr, np.dtype(np.int64)), arrays.convert(x.indices, np.dtype(np.int32)), arrays.convert(x.data, dtype))


PLAIN = {int, float, str, bool, type(None)}


@functools.lru_cache(maxsize=128)
def _validate(kind: type, values: tuple[Any, ...], types: tuple[type, ...]) -> None:
    """What scikit-learn does with the parameters before every fit, once for the same plain values (and types, as 1, 1.0 and True are equal): looking at
    all constraints takes as long as some epochs."""
    validate_parameter_constraints(kind._parameter_constraints, dict(zip(kind._parameter_constraints, values, strict=True)), caller_name=kind.__name__)


@functools.lru_cache(maxsize=32)
def _chain(form: tuple[Any, ...]) -> tuple[Sequential, list[str], dict[Any, Any]]:
    """What all networks of a form share: the layers, in a model that nobody trains, the names of those that have parameters, and what fits have
    learned about numbers of threads. A fit takes that out for its time; another one at the same time begins afresh."""
    widths, activations, dropout, sparse, dtype = form
    layers, names = [], []
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        names.append(str(len(layers)))
        layers.append(Linear(inputs, outputs, init="zeros"))
        if i == 0:   # lies as coefs_[0]: no gradient by the input is wanted, and the other products are faster
            layers[0].transposed = True
            layers[0].operation = "sparse" if sparse else "dense"
        if i < len(activations):
            layers.append(ACTIVATIONS[activations[i]]())
            if dropout:
                layers.append(Dropout(dropout))
    return Sequential(*layers, dtype=dtype, seed=0), names, {}


class _Network:
    """A chain of layers up to what stands before the output activation. `coefs` and `intercepts` are its parameters as scikit-learn has them:
    views, so what is written to one is in the other."""

    def __init__(self, widths: Sequence[int], activations: Sequence[str], dropout: float, sparse: bool, dtype: np.dtype):
        self.form = tuple(widths), tuple(activations), dropout, sparse, np.dtype(dtype)
        chain, self._names, self.paces = _chain(self.form)
        self.model = chain._blank()
        self._twin: _Network | None = None   # of the other dtype
        self.updates: _Updates | None = None   # of the last fit
        self.coefs, self.intercepts = self.parts(self.model.flat_parameters)

    def parts(self, flat: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """An array laid out as the parameters, in scikit-learn's terms: (fan_in, fan_out) and (fan_out,) of every layer."""
        views = self.model.views(flat)
        return [views[f"{name}.weight"].T for name in self._names], [views[f"{name}.bias"] for name in self._names]

    def holds(self, coefs: Sequence[Any], intercepts: Sequence[Any]) -> bool:
        """Whether these are the parameters themselves."""
        return (len(coefs) == len(intercepts) == len(self.coefs)
                and all(given is own for given, own in zip((*coefs, *intercepts), (*self.coefs, *self.intercepts), strict=True)))

    def take(self, coefs: Sequence[Any], intercepts: Sequence[Any]) -> None:
        """Copies parameters in. ValueError for a shape that does not fit."""
        for name, given, own in (("coefs_", coefs, self.coefs), ("intercepts_", intercepts, self.intercepts)):
            if len(given) != len(own):
                raise ValueError(f"{name} must hold {len(own)} arrays, got {len(given)}")
            for i, (value, view) in enumerate(zip(given, own, strict=True)):
                if np.shape(value) != view.shape:
                    raise ValueError(f"{name}[{i}] must have shape {view.shape}, got {np.shape(value)}")
                view[...] = value

    def slots(self) -> list[tuple[int, int, float, float]]:
        """For the update: the penalty is on weights, not on intercepts."""
        return self.model.slots(lambda name: float(name.endswith("weight")))

    def rows(self, x: Any) -> np.ndarray | _Csr:
        """Checked rows, dense or sparse, as the engine reads them."""
        dtype = self.form[-1]
        if issparse(x):
            return _Csr.of(x, dtype)
        return arrays.convert(x, dtype)

    def logits(self, x: Any) -> np.ndarray:
        """What stands before the output activation, for rows x of the kind that this network is for."""
        if not self.form[3]:
            return self.model.predict(x)
        rows = x if isinstance(x, _Csr) else self.rows(x)
        return self.model.compile(capacity=256, training=False, inputs=rows.shape[1]).predict_csr(rows, self.model.flat_parameters)

    def output(self, x: Any, activation: str) -> np.ndarray:
        """The output for rows x, in the wider of the two dtypes."""
        dtype = self.form[-1]
        if np.result_type(x.dtype, dtype) != dtype:
            if self._twin is None:
                self._twin = _Network(*self.form[:-1], np.dtype(np.float64))
            self._twin.take(self.coefs, self.intercepts)
            return self._twin.output(x, activation)
        z = self.logits(x)
        if activation == "softmax":
            return _core.softmax(z, np.empty_like(z))
        if activation != "identity":
            _core.map_forward(_core.ACTIVATIONS[{"logistic": "sigmoid"}.get(activation, activation)], z, z)
        return z


@dataclass
class _Rows:
    """Rows to train on, as the engine reads them: targets are values t or labels."""

    x: Any
    t: np.ndarray | None
    label: np.ndarray | None
    weight: np.ndarray | None

    def __len__(self) -> int:
        return self.x.shape[0]

    @property
    def targets(self) -> list[training.Target]:
        """As training.Data has them."""
        return [training.Target(None, self.t, self.label)]


class _Updates:
    """scikit-learn's optimizer as the engine runs it: the rule is here, the state lies in flat arrays of which the optimizer's lists are views."""

    def __init__(self, network: _Network, optimizer: SGDOptimizer | AdamOptimizer):
        self.optimizer, self.penalty = optimizer, 0.0
        self._slots = network.slots()
        self._adam = isinstance(optimizer, AdamOptimizer)
        self.state = []
        for name in ("ms", "vs") if self._adam else ("velocities",) if optimizer.momentum else ():
            flat = arrays.aligned_zeros(network.model.flat_parameters.size, network.model.dtype)
            views = [view for part in network.parts(flat) for view in part]
            for view, value in zip(views, getattr(optimizer, name), strict=True):
                view[...] = value
            setattr(optimizer, name, views)
            self.state.append(flat)
        self._steps = optimizer.t if self._adam else 0

    @property
    def lr(self) -> float:
        """The learning rate; callbacks may set it."""
        return self.optimizer.learning_rate_init if self._adam else self.optimizer.learning_rate

    @lr.setter
    def lr(self, lr: float) -> None:
        self.optimizer.learning_rate_init = lr
        if not self._adam:
            self.optimizer.learning_rate = lr

    @property
    def steps(self) -> int:
        """Updates made."""
        return self._steps

    @steps.setter
    def steps(self, steps: int) -> None:
        self._steps = steps
        if self._adam and steps:
            o = self.optimizer
            o.t, o.learning_rate = steps, o.learning_rate_init * np.sqrt(1 - o.beta_2**steps) / (1 - o.beta_1**steps)

    def rule(self, model: Any, clip_norm: float) -> _core.UpdateRule:
        """See Optimizer.rule."""
        o = self.optimizer
        numbers = ({"betas": (o.beta_1, o.beta_2), "eps": o.epsilon, "epsilon_hat": True} if self._adam
                   else {"momentum": o.momentum, "nesterov": o.nesterov, "rate_inside": True})
        return _core.UpdateRule("adam" if self._adam else "sgd", self._slots, penalty=self.penalty, clip_norm=clip_norm, **numbers)


class _Gradient:
    """In place of an optimizer: leaves parameters as they are and the gradient, with the penalty's, where it is."""

    state: Sequence[np.ndarray] = ()
    steps = 0

    def __init__(self, network: _Network, penalty: float):
        self._network, self._penalty = network, penalty

    def rule(self, model: Any, clip_norm: float) -> _core.UpdateRule:
        """See Optimizer.rule."""
        return _core.UpdateRule("gradient", self._network.slots(), penalty=self._penalty, clip_norm=clip_norm)


class _Evaluation:
    """(parameters in one vector: all coefs, then all intercepts) -> loss and gradient over all rows, as a minimizer wants them."""

    def __init__(self, network: _Network, loss: Loss, penalty: float, rows: _Rows):
        self._network = network
        self._run = training._NativeRun(network.model, [training.Objective(loss)], _Gradient(network, penalty), rows, len(rows), 0.0, {}, tolerant=True)
        gradients = network.model.workspace.array("gradients", network.model.flat_parameters)   # the one that the run fills
        self._gradients = [part for parts in network.parts(gradients) for part in parts]

    def __call__(self, packed: np.ndarray) -> tuple[float, np.ndarray]:
        at = 0
        for part in (*self._network.coefs, *self._network.intercepts):
            part[...] = packed[at : at + part.size].reshape(part.shape)
            at += part.size
        self._run.start(None, np.zeros(1))
        self._run.advance(training.SLICE)
        return self._run.run.last_loss, np.concatenate([part.ravel() for part in self._gradients])


class _Crowd:
    """Fits that run at the same time in one process share its threads, instead of each trying all of them."""

    def __init__(self) -> None:
        self._lock, self._fits = threading.Lock(), 0

    @contextmanager
    def joined(self, num_threads: int | None) -> Iterator[None]:
        """For the time of a fit; num_threads: the most that it may use, None: its share."""
        with self._lock:
            self._fits += 1
            share = max(1, runtime.get_num_threads() // self._fits)
        try:
            with runtime.num_threads(share if num_threads is None else int(num_threads)):
                yield
        finally:
            with self._lock:
                self._fits -= 1


_crowd = _Crowd()


class _Perceptron:
    """What both estimators replace."""

    _network: _Network

    def _validate_params(self) -> None:
        values = tuple(getattr(self, name) for name in self._parameter_constraints)
        types = tuple(type(part) for value in values for part in (value if type(value) is tuple else (value,)))
        if PLAIN.issuperset(types):
            _validate(type(self), values, types)
        else:
            super()._validate_params()

    # ---- from parameters to layers, losses and rows -----------------------------------------------------------------------------------------

    def _hidden_activations(self, hidden: int) -> tuple[str, ...]:
        if isinstance(self.activation, str):
            return (self.activation,) * hidden
        if len(self.activation) != hidden:
            raise ValueError(f"activation must hold one name per hidden layer, {hidden}, got {self.activation!r}")
        for name in self.activation:
            if name not in ACTIVATIONS:
                raise ValueError(f"activation must hold names among {', '.join(map(repr, ACTIVATIONS))}, got {name!r}")
        return tuple(self.activation)

    def _init_coef(self, fan_in: int, fan_out: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        coef, intercept = super()._init_coef(fan_in, fan_out, dtype)
        layer = len(self.coefs_)
        if not isinstance(self.activation, str) and self.activation and self.activation[min(layer, len(self.activation) - 1)] == "logistic":
            coef, intercept = coef * dtype.type(np.sqrt(1 / 3)), intercept * dtype.type(np.sqrt(1 / 3))   # a single "logistic" has this bound everywhere
        return coef, intercept

    def _objective(self, outputs: int, dtype: np.dtype) -> Loss:
        """The loss without the penalty, of what stands before the output activation."""
        if self.loss == "log_loss":
            loss = CrossEntropyLoss() if self.out_activation_ == "softmax" else BCEWithLogitsLoss("batchmean")
            loss.limit = -np.log(np.finfo(dtype).eps)   # probabilities are kept away from 0 and 1 by this in scikit-learn's value
        elif self.loss == "squared_error":
            loss = MSELoss("batchmean", scale=0.5)
            loss.reported = 1 / outputs   # scikit-learn's value is a mean over the outputs, its gradient that of their sum
        elif self.loss == "poisson":
            loss = PoissonLoss("batchmean")
        elif self.loss == "absolute_error":
            loss = L1Loss("batchmean")
        elif self.loss == "huber":
            loss = HuberLoss(float(self.delta), "batchmean")
        else:
            loss = QuantileLoss(float(self.quantile), "batchmean")
        return loss

    def _rows(self, network: _Network, X: Any, y: np.ndarray, sample_weight: np.ndarray | None) -> _Rows:
        """Checked data as the engine reads it; y (n, outputs)."""
        softmax, dtype = self.out_activation_ == "softmax", network.model.dtype
        return _Rows(network.rows(X), None if softmax else arrays.convert(y, dtype), y.argmax(axis=1).astype(np.int64) if softmax else None,
                     None if sample_weight is None else arrays.convert(sample_weight, dtype))

    def _bind(self, widths: Sequence[int], sparse: bool, dtype: np.dtype) -> _Network:
        """The network of this form, with coefs_ and intercepts_ as its parameters from now on."""
        form = tuple(widths), self._hidden_activations(len(widths) - 2), float(self.dropout), sparse, np.dtype(dtype)
        network = self.__dict__.get("_network")
        if network is None or network.form != form:
            network = _Network(*form)
        if not network.holds(self.coefs_, self.intercepts_):
            network.take(self.coefs_, self.intercepts_)
            self.coefs_, self.intercepts_ = list(network.coefs), list(network.intercepts)
        self._network = network
        return network

    def _present_network(self, sparse: bool = False) -> _Network:
        """The network of the last fit or, when it was for the other kind of matrix, somebody has put other coefs_ in place or changed `activation`
        since, one made for the occasion."""
        activations = self._hidden_activations(len(self.coefs_) - 1)
        network = self.__dict__.get("_network")
        if network is None or network.form[1] != activations or network.form[3] != sparse or not network.holds(self.coefs_, self.intercepts_):
            dtype = np.result_type(*self.coefs_, *self.intercepts_)
            widths = [len(self.coefs_[0]), *map(len, self.intercepts_)]
            network = _Network(widths, activations, 0.0, sparse, dtype if dtype in (np.float32, np.float64) else np.dtype(np.float64))
            network.take(self.coefs_, self.intercepts_)
        return network

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_network"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if hasattr(self, "coefs_"):
            network = self._present_network()
            self.coefs_, self.intercepts_, self._network = list(network.coefs), list(network.intercepts), network

    # ---- predicting -------------------------------------------------------------------------------------------------------------------------

    def _forward_pass_fast(self, X: Any, check_input: bool = True) -> np.ndarray:
        if check_input:
            X = validate_data(self, X, accept_sparse=["csr", "csc"], reset=False)
        with nullcontext() if self.num_threads is None else runtime.num_threads(int(self.num_threads)):
            return self._present_network(issparse(X)).output(X, self.out_activation_)

    # ---- fitting ----------------------------------------------------------------------------------------------------------------------------

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, X_val: Any = None, y_val: Any = None, sample_weight_val: Any = None) -> Any:
        """Fits to X (n, features) and y, with sample_weight (n,) or None; returns self.

        X_val, y_val, sample_weight_val: a validation set. Its loss after every epoch is in `validation_loss_curve_`, and with
        early_stopping=True its score decides instead of that of a part of X.
        """
        if (X_val is None) != (y_val is None):
            raise ValueError("X_val and y_val must be given together")
        return self._fit(X, y, sample_weight=sample_weight, incremental=False, validation=None if X_val is None else (X_val, y_val, sample_weight_val))

    def _fit(self, X: Any, y: Any, sample_weight: Any = None, incremental: bool = False, validation: tuple[Any, Any, Any] | None = None) -> Any:
        if self.solver == "lbfgs":
            for name, given in (("dropout", self.dropout), ("clip_norm", self.clip_norm), ("callbacks", self.callbacks), ("X_val", validation)):
                if given:
                    raise ValueError(f"{name} needs solver='sgd' or 'adam', got solver='lbfgs'")
        self._validation = validation
        try:
            with _crowd.joined(self.num_threads):
                super()._fit(X, y, sample_weight=sample_weight, incremental=incremental)
        finally:
            del self._validation
        if self.solver == "lbfgs":
            self._bind(self._network.form[0], self._network.form[3], self.coefs_[0].dtype)
        return self

    def _fit_lbfgs(self, X: Any, y: Any, sample_weight: Any, activations: Any, deltas: Any, coef_grads: Any, intercept_grads: Any,
                   layer_units: Sequence[int]) -> None:
        sample_weight = self._weighted(y, sample_weight)
        self._bind(layer_units, issparse(X), np.dtype(np.float64))   # the minimizer's numbers
        self._evaluation = self._evaluate(X, y, sample_weight)
        try:
            with self._bar(self.max_iter, "evaluation") as self._tick:
                super()._fit_lbfgs(X, y, sample_weight, activations, deltas, coef_grads, intercept_grads, layer_units)
        finally:
            del self._evaluation, self._tick
        self.validation_loss_curve_ = None

    def _evaluate(self, X: Any, y: np.ndarray, sample_weight: np.ndarray | None) -> _Evaluation:
        network = self._network
        return _Evaluation(network, self._objective(y.shape[1], network.model.dtype), float(self.alpha), self._rows(network, X, y, sample_weight))

    def _loss_grad_lbfgs(self, packed_coef_inter: np.ndarray, X: Any, y: np.ndarray, sample_weight: np.ndarray | None, activations: Any, deltas: Any,
                         coef_grads: Any, intercept_grads: Any) -> tuple[float, np.ndarray]:
        evaluation = self.__dict__.get("_evaluation")
        if evaluation is None:
            return self._evaluate(X, y, sample_weight)(packed_coef_inter)
        value, gradient = evaluation(packed_coef_inter)
        self._tick(value)
        return value, gradient

    def _weighted(self, y: np.ndarray, sample_weight: np.ndarray | None) -> np.ndarray | None:
        """The weights of rows with targets y."""
        return sample_weight

    def _fit_stochastic(self, X: Any, y: np.ndarray, sample_weight: np.ndarray | None, activations: Any, deltas: Any, coef_grads: Any, intercept_grads: Any,
                        layer_units: Sequence[int], incremental: bool) -> None:
        if self.early_stopping and incremental:
            raise ValueError("partial_fit does not support early_stopping=True")
        callbacks = training._callbacks(self.callbacks or ())
        network, dtype = self._bind(layer_units, issparse(X), X.dtype), X.dtype
        updates = self._updates(network, incremental)
        X, y, sample_weight, validation = self._split(X, y, self._weighted(y, sample_weight))
        n_samples = X.shape[0]
        batch_size = min(200, n_samples)
        if self.batch_size != "auto":
            if self.batch_size > n_samples:
                warnings.warn("Got `batch_size` less than 1 or larger than sample size. It is going to be clipped", stacklevel=2)
            batch_size = min(self.batch_size, n_samples)
        batches = -(-n_samples // batch_size)

        loss = self._objective(y.shape[1], dtype)
        clip_norm = 0.0 if self.clip_norm is None else float(self.clip_norm)
        model = network.model
        if self.dropout:
            model.seed, model.steps = int(self._random_state.randint(2**31)), 0
        run = training._NativeRun(model, [training.Objective(loss)], updates, self._rows(network, X, y, sample_weight), batch_size, clip_norm, {}, tolerant=True)
        pace = run.run.choices, batch_size
        run.pace = network.paces.pop(pace, run.pace)
        held_out = None if validation is None else self._held_out(network, loss, validation)
        self.validation_loss_curve_ = None if held_out is None else []
        watched = any(hasattr(callback, "on_batch_end") for callback in callbacks)
        # Nobody looks between epochs, nobody else draws from the generator, and losses are compared in their own type.
        alone = (not (callbacks or validation or self.verbose or self.progress) and self.learning_rate != "invscaling"
                 and (not self.shuffle or isinstance(self.random_state, Integral)) and np.result_type(self.best_loss_, self.tol, dtype) == dtype)
        model.optimizer = updates
        order, epochs = np.arange(n_samples) if self.shuffle else None, 1 if incremental else self.max_iter

        def ended(mean_loss: float, stop: bool = False) -> bool:
            """Books an epoch. Whether it was the last one; stop: because somebody said so."""
            self.n_iter_ += 1
            self.loss_ = dtype.type(mean_loss)
            self.t_ += n_samples
            self.loss_curve_.append(self.loss_)
            if self.verbose:
                print("Iteration %d, loss = %.8f" % (self.n_iter_, self.loss_))
            self._update_no_improvement_count(self.early_stopping, *(validation or (None, None, None)))
            if held_out is not None:
                self.validation_loss_curve_.append(held_out())
            tick(self.loss_)
            updates.optimizer.iteration_ends(self.t_)
            if callbacks:
                logs = {"loss": float(self.loss_)}
                if held_out is not None:
                    logs["val_loss"] = self.validation_loss_curve_[-1]
                if self.early_stopping:
                    logs["val_score"] = self.validation_scores_[-1]
                stop |= training._call(callbacks, "on_epoch_end", model, self.n_iter_ - 1, logs)
            if stop or self._converged():
                return True
            if self.n_iter_ == self.max_iter and not incremental:
                warnings.warn("Stochastic Optimizer: Maximum iterations (%d) reached and the optimization hasn't converged yet." % self.max_iter,
                              ConvergenceWarning, stacklevel=3)
            return self.n_iter_ == epochs

        try:
            with self._bar(epochs, "epoch") as tick:
                self.n_iter_ = 0
                training._call(callbacks, "on_train_begin", model)
                stop = False
                while not stop:
                    training._call(callbacks, "on_epoch_begin", model, self.n_iter_, {})
                    if self.shuffle:
                        self._random_state.shuffle(order)
                    rates, booked = np.full(batches, updates.lr), 0
                    series = self._series(order, n_samples, epochs - self.n_iter_, dtype) if alone else None
                    run.start(order, rates, series=series)
                    status = _core.RUNNING
                    while status == _core.RUNNING and not stop:
                        try:
                            status = run.advance(training.SLICE, 1 if watched else 0)
                        finally:   # also after Ctrl-C
                            updates.steps = run.run.steps
                            for loss_of_epoch in () if series is None else series.losses[booked:]:
                                booked, stop = booked + 1, ended(loss_of_epoch)
                        if watched:
                            stop = training._call(callbacks, "on_batch_end", model, run.run.batch - 1, {"loss": run.run.last_loss})
                            rates[run.run.batch :] = updates.lr
                    if series is None:
                        stop = ended(run.run.totals()[0] / min(run.run.batch * batch_size, n_samples), stop)
                training._call(callbacks, "on_train_end", model)
        except KeyboardInterrupt:
            warnings.warn("Training interrupted by user.", stacklevel=2)
        finally:
            network.paces[pace] = run.pace
            model.optimizer, model.steps = None, run.run.dropout_step
            model.workspace.trim()

        if self.early_stopping:
            network.take(self._best_coefs, self._best_intercepts)
            self._best_coefs, self._best_intercepts = self.coefs_, self.intercepts_   # one and the same there, too

    def _series(self, order: np.ndarray | None, n_samples: int, epochs: int, dtype: np.dtype) -> _core.Series:
        """The next epochs, up to the one after which `_converged` has something to decide."""
        return _core.Series(n_samples, order, self._random_state if self.shuffle else None, min(epochs, 1024), dtype == np.float32, float(self.best_loss_),
                            float(self.tol), self._no_improvement_count, min(self.n_iter_no_change, 2**62))

    def _updates(self, network: _Network, incremental: bool) -> _Updates:
        if not incremental or not hasattr(self, "_optimizer"):
            parameters = network.coefs + network.intercepts
            if self.solver == "sgd":
                self._optimizer = SGDOptimizer(parameters, self.learning_rate_init, self.learning_rate, self.momentum, self.nesterovs_momentum, self.power_t)
            else:
                self._optimizer = AdamOptimizer(parameters, self.learning_rate_init, self.beta_1, self.beta_2, self.epsilon)
        if network.updates is None or network.updates.optimizer is not self._optimizer:
            network.updates = _Updates(network, self._optimizer)
        network.updates.penalty = float(self.alpha)
        return network.updates

    def _split(self, X: Any, y: np.ndarray, sample_weight: np.ndarray | None) -> tuple[Any, np.ndarray, np.ndarray | None, tuple[Any, Any, Any] | None]:
        """Rows to train on; and rows, original targets and weights to validate on, where there are."""
        if self._validation is not None:
            return X, y, sample_weight, self._given_validation(X.dtype)
        if not self.early_stopping:
            return X, y, sample_weight, None
        parts = train_test_split(*(X, y) if sample_weight is None else (X, y, sample_weight), random_state=self._random_state,
                                 test_size=self.validation_fraction, stratify=y if is_classifier(self) and self.n_outputs_ == 1 else None)
        (X, X_val, y, y_val), weights = parts[:4], parts[4:] or (None, None)
        if X_val.shape[0] < 2:
            raise ValueError("The validation set is too small. Increase 'validation_fraction' or the size of your dataset.")
        return X, y, weights[0], (X_val, self._original(y_val), weights[1])

    def _given_validation(self, dtype: np.dtype) -> tuple[Any, Any, Any]:
        X, y, sample_weight = self._validation
        X, y = validate_data(self, X, y, accept_sparse=["csr", "csc"], multi_output=True, y_numeric=not is_classifier(self), dtype=dtype, reset=False)
        y = y.ravel() if y.ndim == 2 and y.shape[1] == 1 else y
        return X, y, None if sample_weight is None else _check_sample_weight(sample_weight, X)

    def _held_out(self, network: _Network, loss: Loss, validation: tuple[Any, Any, Any]) -> Any:
        """A function that gives the loss over these rows."""
        X, y, sample_weight = validation
        rows = self._rows(network, X, self._encoded(y), sample_weight)
        rule = loss.rule(self.n_outputs_)
        return lambda: rule.value(network.logits(rows.x), rows.t, rows.label, rows.weight, None)

    def _encoded(self, y: np.ndarray) -> np.ndarray:
        """Original targets as a matrix (n, outputs)."""
        return y.reshape(len(y), -1)

    def _original(self, y: np.ndarray) -> np.ndarray:
        """Targets (n, outputs) as scores see them."""
        return y

    def _converged(self) -> bool:
        """Whether to stop, or to go on with a smaller learning rate."""
        if self._no_improvement_count <= self.n_iter_no_change:
            return False
        what = "Validation score" if self.early_stopping else "Training loss"
        message = "%s did not improve more than tol=%f for %d consecutive epochs." % (what, self.tol, self.n_iter_no_change)
        if self._optimizer.trigger_stopping(message, self.verbose):
            return True
        self._no_improvement_count = 0
        return False

    @contextmanager
    def _bar(self, total: int, unit: str) -> Iterator[Any]:
        """A function to call with the loss after every unit; draws a bar where `progress` says so."""
        if not self.progress:
            yield lambda loss: None
            return
        from tqdm import tqdm

        with tqdm(total=total, unit=unit, dynamic_ncols=True) as bar:
            def tick(loss: float) -> None:
                bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
                bar.update()

            yield tick


_WISHES: dict[str, Any] = {
    "activation": [StrOptions(set(ACTIVATIONS)), list, tuple],
    "dropout": [Interval(Real, 0, 1, closed="left")],
    "clip_norm": [Interval(Real, 0, None, closed="neither"), None],
    "callbacks": [list, tuple, None],
    "num_threads": [Interval(Integral, 1, runtime.MAX_THREADS, closed="both"), None],
    "progress": ["boolean"],
}


class MLPClassifier(_Perceptron, neural_network.MLPClassifier):
    """sklearn.neural_network.MLPClassifier on this engine: its parameters, attributes, methods and results. Beyond it:

    hidden_layer_sizes
        also (), no hidden layer: logistic or softmax regression
    activation
        also "leaky_relu", "elu", "gelu", "silu", "softplus", and a list with one name per hidden layer
    class_weight
        None, "balanced" or a dict: factors on the weights of the rows, sklearn.utils.compute_sample_weight
    dropout
        in [0, 1): the probability with which a hidden unit is left out of a step
    clip_norm
        None, or the 2-norm that the gradient of a batch (without the penalty's) is scaled down to
    callbacks
        None or a list, see fastbp.callbacks: `model` is the chain of layers up to the logits, logs have
        "loss", "val_loss", "val_score"
    num_threads
        None: fits at the same time share the threads; or the most to use
    progress
        True: a bar on stderr

    `fit` takes a validation set, X_val, y_val, sample_weight_val. ``validation_loss_curve_`` is the loss (without the penalty) after every epoch of the
    last fit on the validation set, given or split off for early_stopping, else None. dropout, clip_norm, callbacks and X_val need solver "sgd" or
    "adam"; ValueError otherwise, and for class_weight="balanced" in partial_fit.
    """

    _parameter_constraints = {**neural_network.MLPClassifier._parameter_constraints, **_WISHES,
                              "class_weight": [dict, list, StrOptions({"balanced"}), None]}

    def __init__(self, hidden_layer_sizes=(100,), activation="relu", *, solver="adam", alpha=0.0001, batch_size="auto", learning_rate="constant",
                 learning_rate_init=0.001, power_t=0.5, max_iter=200, shuffle=True, random_state=None, tol=1e-4, verbose=False, warm_start=False,
                 momentum=0.9, nesterovs_momentum=True, early_stopping=False, validation_fraction=0.1, beta_1=0.9, beta_2=0.999, epsilon=1e-8,
                 n_iter_no_change=10, max_fun=15000, class_weight=None, dropout=0.0, clip_norm=None, callbacks=None, num_threads=None, progress=False):
        super().__init__(
            hidden_layer_sizes=hidden_layer_sizes, activation=activation, solver=solver, alpha=alpha, batch_size=batch_size, learning_rate=learning_rate,
            learning_rate_init=learning_rate_init, power_t=power_t, max_iter=max_iter, shuffle=shuffle, random_state=random_state, tol=tol, verbose=verbose,
            warm_start=warm_start, momentum=momentum, nesterovs_momentum=nesterovs_momentum, early_stopping=early_stopping,
            validation_fraction=validation_fraction, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, n_iter_no_change=n_iter_no_change, max_fun=max_fun)
        self.class_weight = class_weight
        self.dropout, self.clip_norm, self.callbacks, self.num_threads, self.progress = dropout, clip_norm, callbacks, num_threads, progress

    def _fit(self, X: Any, y: Any, sample_weight: Any = None, incremental: bool = False, validation: tuple[Any, Any, Any] | None = None) -> Any:
        if incremental and isinstance(self.class_weight, str):
            raise ValueError("class_weight='balanced' needs all rows and is not supported by partial_fit; give the weights as a dict")
        return super()._fit(X, y, sample_weight, incremental, validation)

    def _weighted(self, y: np.ndarray, sample_weight: np.ndarray | None) -> np.ndarray | None:
        if self.class_weight is None:
            return sample_weight
        factor = compute_sample_weight(self.class_weight, self._original(y))
        return factor if sample_weight is None else factor * sample_weight

    def _score(self, X: Any, y: np.ndarray, sample_weight: np.ndarray | None = None) -> float:
        right = self._predict(X, check_input=False) == y   # accuracy, without looking at every epoch what kind of labels these are
        return float(np.average(right if right.ndim == 1 else right.all(axis=1), weights=sample_weight))

    def _original(self, y: np.ndarray) -> np.ndarray:
        return self._label_binarizer.inverse_transform(y)

    def _encoded(self, y: np.ndarray) -> np.ndarray:
        unseen = np.setdiff1d(np.unique(y), self.classes_)
        if unseen.size:
            raise ValueError(f"y_val has classes that y has not: {unseen}")
        return self._label_binarizer.transform(y).astype(bool)


class MLPRegressor(_Perceptron, neural_network.MLPRegressor):
    """sklearn.neural_network.MLPRegressor on this engine: its parameters, attributes, methods and results. Beyond it:

    loss
        also "absolute_error", "huber" and "quantile", each a mean over the rows and a sum over the outputs: fb.L1Loss, fb.HuberLoss,
        fb.QuantileLoss
    delta
        > 0: where Huber's loss turns from quadratic to linear
    quantile
        in (0, 1)
    hidden_layer_sizes
        also (), no hidden layer: linear regression, or Poisson's

    and activation, dropout, clip_norm, callbacks, num_threads, progress, X_val, y_val and ``validation_loss_curve_`` as in MLPClassifier.
    """

    _parameter_constraints = {**neural_network.MLPRegressor._parameter_constraints, **_WISHES,
                              "loss": [StrOptions({"squared_error", "poisson", "absolute_error", "huber", "quantile"})],
                              "delta": [Interval(Real, 0, None, closed="neither")], "quantile": [Interval(Real, 0, 1, closed="neither")]}

    def __init__(self, loss="squared_error", hidden_layer_sizes=(100,), activation="relu", *, solver="adam", alpha=0.0001, batch_size="auto",
                 learning_rate="constant", learning_rate_init=0.001, power_t=0.5, max_iter=200, shuffle=True, random_state=None, tol=1e-4, verbose=False,
                 warm_start=False, momentum=0.9, nesterovs_momentum=True, early_stopping=False, validation_fraction=0.1, beta_1=0.9, beta_2=0.999,
                 epsilon=1e-8, n_iter_no_change=10, max_fun=15000, delta=1.0, quantile=0.5, dropout=0.0, clip_norm=None, callbacks=None, num_threads=None,
                 progress=False):
        super().__init__(
            loss=loss, hidden_layer_sizes=hidden_layer_sizes, activation=activation, solver=solver, alpha=alpha, batch_size=batch_size,
            learning_rate=learning_rate, learning_rate_init=learning_rate_init, power_t=power_t, max_iter=max_iter, shuffle=shuffle,
            random_state=random_state, tol=tol, verbose=verbose, warm_start=warm_start, momentum=momentum, nesterovs_momentum=nesterovs_momentum,
            early_stopping=early_stopping, validation_fraction=validation_fraction, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon,
            n_iter_no_change=n_iter_no_change, max_fun=max_fun)
        self.delta, self.quantile = delta, quantile
        self.dropout, self.clip_norm, self.callbacks, self.num_threads, self.progress = dropout, clip_norm, callbacks, num_threads, progress
