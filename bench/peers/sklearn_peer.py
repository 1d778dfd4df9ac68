"""scikit-learn: `partial_fit` of its multilayer perceptron, one epoch a call, no shuffling, no penalty.

Its squared error is half the sum over outputs, ours the mean: the rate is scaled by 2 / outputs, which Adam does not
notice beyond its eps.
"""

import warnings

import numpy as np
import sklearn
from sklearn.neural_network import MLPClassifier, MLPRegressor

from ..shapes import MOMENTUM

_ACTIVATIONS = {"relu": "relu", "tanh": "tanh", "sigmoid": "logistic"}


def version():
    return f"scikit-learn {sklearn.__version__}"


class Trainer:
    def __init__(self, threads):
        """The number of threads is BLAS's, from the environment."""

    def build(self, net, weights, x, y):
        if net.skips:
            raise ValueError(f"{net.name}: this peer has no skip connections, choose others by --peers")
        scale = 2 / net.widths[-1] if net.loss == "mse" and net.optimizer != "adam" else 1
        estimator = MLPClassifier if net.loss == "ce" else MLPRegressor
        self.model = estimator(
            hidden_layer_sizes=net.widths[1:-1], activation=_ACTIVATIONS[net.activation], alpha=0, shuffle=False,
            solver="adam" if net.optimizer == "adam" else "sgd", learning_rate_init=net.lr * scale,
            momentum=MOMENTUM if net.optimizer == "momentum" else 0, nesterovs_momentum=False, batch_size=net.batch)
        self.net, self.x = net, x
        self.y = y.ravel() if net.widths[-1] == 1 else y
        self.classes = {"classes": np.arange(net.widths[-1])} if net.loss == "ce" else {}
        self._epoch(**self.classes)  # makes the arrays; then the common start takes their place
        del self.model._optimizer
        self.model.coefs_ = [np.ascontiguousarray(w.T) for w, _ in weights]
        self.model.intercepts_ = [b.copy() for _, b in weights]

    def run(self, steps):
        for _ in range(steps // self.net.batches):
            self._epoch()

    def loss(self):
        if self.net.loss == "ce":
            picked = self.model.predict_proba(self.x)[np.arange(len(self.y)), self.y]
            return float(-np.log(picked.astype(np.float64)).mean())
        return float(np.mean((self.model.predict(self.x).astype(np.float64) - self.y) ** 2))

    def close(self):
        del self.model, self.x, self.y

    def _epoch(self, **options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model.partial_fit(self.x, self.y, **options)


KERNELS = {}
