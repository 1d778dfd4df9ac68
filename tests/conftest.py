"""Fixtures of all tests. Helpers that are no fixtures live in reference.py (mathematics) and tolerance.py (numbers)."""
import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("default", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("nightly", max_examples=2000, deadline=None, print_blob=True)
settings.load_profile("default")


@pytest.fixture
def rng():
    """A fresh generator, the same for every test"""
    return np.random.default_rng(20240229)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture
def build():
    """build([("Linear", 3, 4), ("ReLU",)], dtype=..., seed=...): a Sequential from reference.Network's description"""
    import fastbp as fb

    def sequential(layers, dtype="float64", seed=0):
        return fb.Sequential(*(getattr(fb, kind)(*options) for kind, *options in layers), dtype=dtype, seed=seed)

    return sequential


@pytest.fixture
def no_grain():
    """Even the smallest step is divided among all threads that are allowed"""
    from fastbp import _core

    old = _core._set_grain(1)
    yield
    _core._set_grain(old)


@pytest.fixture(scope="session")
def fingerprint():
    """fingerprint(...): SHA-256 of arrays, numbers and strings in any nesting of dicts and sequences"""

    def update(sha, value):
        if isinstance(value, dict):
            for key in sorted(value):
                sha.update(repr(key).encode())
                update(sha, value[key])
        elif isinstance(value, (list, tuple)):
            sha.update(f"{type(value).__name__} {len(value)}".encode())
            for item in value:
                update(sha, item)
        elif isinstance(value, np.ndarray):
            sha.update(f"{value.dtype} {value.shape}".encode())
            sha.update(value.tobytes())
        elif isinstance(value, float):
            sha.update(value.hex().encode())
        else:
            assert value is None or isinstance(value, (bool, int, str, np.generic)), type(value)
            sha.update(repr(value).encode())

    def digest(*values):
        sha = hashlib.sha256()
        update(sha, values)
        return sha.hexdigest()

    return digest


HEARS_INTERRUPTS = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs inherit deafness


@pytest.fixture
def fresh_process():
    """fresh_process(code, FASTBP_ISA="baseline"): what the code prints in a new interpreter with that environment"""

    def run(code, **environment):
        done = subprocess.run([sys.executable, "-c", HEARS_INTERRUPTS + code], env={**os.environ, **environment},
                              capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run
