"""A seat: one contestant on its number of threads, in a process of its own.

Its cores are pinned and its thread counts are set before its libraries are loaded, and its BLAS and its OpenMP runtime
meet nobody else's. Between its turns it waits on a pipe and uses no CPU.
"""

import importlib
import multiprocessing
import os
import signal
import time
import traceback
from contextlib import contextmanager
from functools import partial

import numpy as np

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "FASTBP_NUM_THREADS")


class Seat:
    """``ask(verb, *arguments)`` calls the method of that name of `_Contestant` in the other process."""

    def __init__(self, peer, threads):
        """Raises ImportError if the peer cannot be imported."""
        self.peer, self.threads = peer, threads
        context = multiprocessing.get_context("spawn")
        self._connection, remote = context.Pipe()
        self._process = context.Process(target=_serve, args=(remote, peer, threads), daemon=True)
        with _environment({name: str(threads) for name in _THREAD_VARIABLES}):
            self._process.start()
        self.version = self._receive()

    def ask(self, verb, *arguments):
        self._connection.send((verb, arguments))
        return self._receive()

    def close(self):
        self._connection.send(None)
        self._process.join()

    def _receive(self):
        try:
            reply, error = self._connection.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"{self.peer} on {self.threads} threads: its process ended with exit code "
                               f"{self._process.exitcode}") from None
        if error:
            raise error
        return reply


class _Contestant:
    """What a seat can be asked, inside its process."""

    def __init__(self, peer, threads):
        self.module = importlib.import_module(f"bench.peers.{peer}_peer")
        self.threads, self.trainer, self.work = threads, None, None

    def version(self):
        return self.module.version()

    def train(self, net):
        """Take the common start; the unit of work is an epoch."""
        self.leave()
        self.trainer = self.module.Trainer(self.threads)
        self.trainer.build(net, net.weights(), *net.data())
        self.work = lambda count: self.trainer.run(count * net.batches)

    def predict(self, prediction):
        """Build the prediction; its result, or None if this peer predicts nothing."""
        self.leave()
        builder = getattr(self.module, "predictor", None)
        if builder is None:
            return None
        call = builder(prediction.net, prediction.net.weights(), prediction.x())
        self.work = partial(_repeat, call)
        return np.array(call())

    def has_kernels(self):
        return bool(self.module.KERNELS)

    def kernel(self, case):
        """Build the case; its error in units of what is allowed, or None if this peer has no such kernel."""
        self.leave()
        builder = self.module.KERNELS.get(case.function)
        if builder is None:
            return None
        call, error = case.build(builder)
        self.work = partial(_repeat, call)
        return error

    def run(self, count):
        """Seconds for that many units of work."""
        begin = time.perf_counter()
        self.work(count)
        return time.perf_counter() - begin

    def loss(self):
        return self.trainer.loss()

    def leave(self):
        """Give back what the last workload held."""
        if self.trainer:
            self.trainer.close()
        self.trainer = self.work = None

    def probe(self, name, *arguments):
        """A function of probes.py."""
        return getattr(importlib.import_module("bench.probes"), name)(*arguments)


def _repeat(call, count):
    for _ in range(count):
        call()


def _serve(connection, peer, threads):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; it ends this process
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    try:
        contestant = _Contestant(peer, threads)
    except ImportError as error:
        connection.send((None, ImportError(str(error))))
        return
    connection.send((contestant.version(), None))
    while message := connection.recv():
        verb, arguments = message
        try:
            connection.send((getattr(contestant, verb)(*arguments), None))
        except Exception:
            connection.send((None, RuntimeError(f"{peer} on {threads} threads, {verb}:\n{traceback.format_exc()}")))


@contextmanager
def _environment(variables):
    """The process started inside sees these variables."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
