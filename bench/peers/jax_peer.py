"""JAX: the loop over steps and batches inside one `jit`, buffers donated; number of steps a traced value."""

from functools import partial
from math import log

import jax
import jaxlib
from jax import numpy as jnp

from ..shapes import MOMENTUM

_ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid}


def version():
    return f"JAX {jax.__version__} (jaxlib {jaxlib.__version__})"


class Trainer:
    def __init__(self, threads):
        """XLA's threads are as many as the process has cores."""

    def build(self, net, weights, x, y):
        jax.config.update("jax_enable_x64", net.dtype == "float64")
        self.x, self.y = (jnp.asarray(array.reshape(net.batches, net.batch, *array.shape[1:])) for array in (x, y))
        self.objective = partial(_loss, _ACTIVATIONS[net.activation], net.loss, net.skips)
        start, update = _OPTIMIZERS[net.optimizer]
        parameters = jax.tree.map(jnp.array, weights)
        self.state = parameters, start(parameters)

        def run(state, steps, x, y):
            def step(index, state):
                parameters, memory = state
                batch = index % net.batches
                gradients = jax.grad(self.objective)(parameters, x[batch], y[batch])
                return update(net.lr, parameters, gradients, memory)

            return jax.lax.fori_loop(0, steps, step, state)

        self.train = jax.jit(run, donate_argnums=0)

    def run(self, steps):
        self.state = jax.block_until_ready(self.train(self.state, steps, self.x, self.y))

    def loss(self):
        flat = (array.reshape(-1, *array.shape[2:]) for array in (self.x, self.y))
        return float(self.objective(self.state[0], *flat))

    def close(self):
        del self.state, self.train, self.x, self.y
        jax.clear_caches()


def predictor(net, weights, x):
    jax.config.update("jax_enable_x64", net.dtype == "float64")
    x, weights, activation = jnp.asarray(x), jax.tree.map(jnp.array, weights), _ACTIVATIONS[net.activation]

    @jax.jit
    def predict(weights, x):
        *hidden, (w, b) = weights
        for weight, bias in hidden:
            x = activation(x @ weight.T + bias)
        return x @ w.T + b

    return lambda: jax.block_until_ready(predict(weights, x))


def _loss(activation, kind, skips, parameters, x, y):
    *hidden, (w, b) = parameters
    for weight, bias in hidden:
        h = activation(x @ weight.T + bias)
        x = x + h if skips and x.shape == h.shape else h
    prediction = x @ w.T + b
    if kind == "mse":
        return jnp.mean((prediction - y) ** 2)
    scores = jax.nn.log_softmax(prediction)
    return -jnp.mean(jnp.take_along_axis(scores, y[:, None], axis=1))


def _sgd(lr, parameters, gradients, memory):
    return jax.tree.map(lambda p, g: p - lr * g, parameters, gradients), memory


def _momentum(lr, parameters, gradients, velocity):
    velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, gradients)
    return jax.tree.map(lambda p, v: p - lr * v, parameters, velocity), velocity


def _adam(lr, parameters, gradients, memory, beta1=0.9, beta2=0.999, eps=1e-8):
    steps, m, v = memory
    steps = steps + 1
    m = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, m, gradients)
    v = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, v, gradients)
    root = jnp.sqrt(-jnp.expm1(steps * log(beta2)))  # 1 - beta2**steps without cancellation
    rate = lr * root / -jnp.expm1(steps * log(beta1))
    parameters = jax.tree.map(lambda p, m, v: p - (rate * m / (jnp.sqrt(v) + eps * root)).astype(p.dtype),
                              parameters, m, v)
    return parameters, (steps, m, v)


def _zeros(parameters):
    return jax.tree.map(jnp.zeros_like, parameters)


_OPTIMIZERS = {
    "sgd": (lambda parameters: None, _sgd),
    "momentum": (_zeros, _momentum),
    "adam": (lambda parameters: (jnp.zeros(()), _zeros(parameters), _zeros(parameters)), _adam),
}
KERNELS = {}
