"""Which instruction set and how many threads: environment, import errors, selection within a process, show_config."""
import os
import subprocess
import sys

import numpy as np
import pytest
from kernel_cases import ISAS, isa, same_bits, selected, team  # noqa: F401

import fastbp as fb
from fastbp import _core, runtime
from fastbp import kernels as K

ASK = "import fastbp; from fastbp import _core; print(_core.isa(), fastbp.get_num_threads())"


def ask(code=ASK, **environment):
    """(exit code, output, errors) of a new interpreter that knows of our variables only what is given"""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("FASTBP_", "OMP_"))}
    done = subprocess.run([sys.executable, "-c", code], env=inherited | environment, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout.strip(), done.stderr


def refused(**environment):
    """The message of the ImportError that an import raises"""
    code, output, errors = ask("import fastbp", **environment)
    assert code == 1 and not output
    last = errors.strip().splitlines()[-1]
    assert last.startswith("ImportError: "), errors
    return last


# --- FASTBP_ISA ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ISAS)
def test_isa_of_the_environment_is_used(name):
    """And no other variable disturbs it"""
    assert ask(FASTBP_ISA=name, FASTBP_NUM_THREADS="3") == (0, f"{name} 3", "")


def test_isa_without_a_wish_is_the_best():
    best = next(name for name, supported in _core.isas() if supported)
    code, output, _ = ask(FASTBP_ISA="")
    assert (code, output.split()[0]) == (0, best)
    assert best != "wide"  # the tests' own: never chosen for speed


@pytest.mark.parametrize("name", ["sse9", "AVX2", "avx2 ", "0"])
def test_isa_that_is_unknown_is_an_import_error_that_lists_those_there_are(name):
    message = refused(FASTBP_ISA=name)
    assert repr(name) in message and "FASTBP_ISA" in message and "unknown" in message
    assert all(known in message for known, _ in _core.isas())


@pytest.mark.parametrize("name", [name for name, supported in _core.isas() if not supported])
def test_isa_that_this_machine_lacks_is_an_import_error_that_lists_those_there_are(name):
    message = refused(FASTBP_ISA=name)
    assert repr(name) in message and "not supported" in message
    assert all(known in message for known, _ in _core.isas())


def test_isa_that_a_machine_lacks_is_an_import_error(monkeypatch):
    """On a machine that has them all"""
    monkeypatch.setattr(runtime, "_core", type("Core", (), {"select_isa": lambda name: -2, "isas": lambda: [("avx512", False), ("baseline", True)]}))
    monkeypatch.setenv("FASTBP_ISA", "avx512")
    with pytest.raises(ImportError, match="'avx512' is not supported.*: avx512 [(]not on this machine[)], baseline$"):
        runtime._from_environment()


def test_isa_is_selected_within_a_process():
    """By name; None stands for the best. A name that is refused changes nothing."""
    with selected(_core.isa()):
        for name in ISAS:
            assert _core.select_isa(name) == 0 and _core.isa() == name
            assert _core.select_isa("sse9") == -1 and _core.isa() == name
        assert _core.select_isa(None) == 0 and _core.isa() == ISAS[0]


def test_isas_are_listed_best_first_and_the_floor_is_always_there():
    names = [name for name, _ in _core.isas()]
    assert len(set(names)) == len(names)
    assert _core.isas()[-1][1]
    ranking = [name for name in ("avx512", "avx2", "wide", "baseline", "neon") if name in names]
    assert names == ranking


def test_isa_holds_for_functions_at_once_and_for_models_from_their_compilation(rng, dtype):
    """What FMA changes shows which one ran"""
    fused = next((name for name in ISAS if name != "baseline"), None)
    if fused is None or "baseline" not in ISAS:
        pytest.skip("needs two classes of rounding")
    x, w = rng.standard_normal((2, 40, 40)).astype(dtype)
    results = {}
    for name in ISAS:
        with selected(name):
            model = fb.Sequential(fb.Linear(40, 40, bias=False), dtype=dtype, seed=0)
            model.parameters["0.weight"][:] = w
            results[name] = K.linear_forward(x, w)
            assert same_bits(model.predict(x), results[name]), name
    assert not np.array_equal(results[fused], results["baseline"])
    assert all(same_bits(results[name], results[fused]) for name in ISAS if name != "baseline")


# --- threads --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("environment, threads", [
    ({"FASTBP_NUM_THREADS": "1"}, 1),
    ({"FASTBP_NUM_THREADS": "5"}, 5),
    ({"FASTBP_NUM_THREADS": "1024"}, 1024),
    ({"OMP_NUM_THREADS": "3"}, 3),
    ({"OMP_NUM_THREADS": "1"}, 1),
    ({"FASTBP_NUM_THREADS": "2", "OMP_NUM_THREADS": "3"}, 2),
    ({"FASTBP_NUM_THREADS": "", "OMP_NUM_THREADS": "3"}, 3),
], ids=str)
def test_threads_of_the_environment_are_used(environment, threads):
    code, output, errors = ask(**environment)
    assert (code, output.split()[1], errors) == (0, str(threads), "")


def test_threads_without_a_wish_are_no_more_than_the_processors():
    code, output, _ = ask()
    assert code == 0
    assert 1 <= int(output.split()[1]) <= (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "1025", " 2", "2,2"])
def test_threads_of_the_environment_that_are_no_number_are_an_import_error(value):
    message = refused(FASTBP_NUM_THREADS=value)
    assert "FASTBP_NUM_THREADS" in message and repr(value) in message and "1024" in message


@pytest.mark.parametrize("value", ["²", "1" * 5000])
def test_threads_of_the_environment_that_only_look_like_a_number_are_an_import_error(value):
    assert "FASTBP_NUM_THREADS" in refused(FASTBP_NUM_THREADS=value)


def test_threads_of_a_block_outrank_those_of_the_process_and_the_environment():
    assert ask("""
import fastbp as fb
seen = [fb.get_num_threads()]
fb.set_num_threads(4)
seen.append(fb.get_num_threads())
with fb.num_threads(2):
    seen.append(fb.get_num_threads())
    with fb.num_threads(7):
        seen.append(fb.get_num_threads())
    seen.append(fb.get_num_threads())
seen.append(fb.get_num_threads())
print(*seen)
""", FASTBP_NUM_THREADS="3", OMP_NUM_THREADS="5")[:2] == (0, "3 4 2 7 2 4")


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads as Linux shows them")
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads_that_are_allowed_are_the_threads_that_run(threads):
    """Each kind of call starts as many and no more"""
    if not _core.openmp_version():
        pytest.skip("built without OpenMP")
    code, output, _ = ask("""
import os, numpy as np, fastbp as fb
from fastbp import _core, kernels as K
before = len(os.listdir("/proc/self/task"))
_core._set_grain(1)
x = np.ones((500, 500), np.float32)
for call in (lambda: K.matmul(x, x), lambda: K.bias_gradient(x), lambda: K.relu_forward(x), lambda: K.relu_backward(x, x), lambda: K.softmax(x),
             lambda: fb.MSELoss()(x, x), lambda: K.sgd_update(x.copy(), x, 0.1)):
    call()
    print(len(os.listdir("/proc/self/task")) - before + 1)
""", FASTBP_NUM_THREADS=str(threads))
    assert (code, output.split()) == (0, [str(threads)] * 7)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads as Linux shows them")
def test_small_work_stays_on_one_thread():
    """A call too small for two threads does not wake a team"""
    code, output, _ = ask("""
import os, numpy as np, fastbp as fb
from fastbp import kernels as K
before = len(os.listdir("/proc/self/task"))
x = np.ones((30, 30), np.float32)
K.matmul(x, x), K.softmax(x), K.exp(x), K.bias_gradient(x), fb.CrossEntropyLoss()(x, x)
print(len(os.listdir("/proc/self/task")) - before)
""", FASTBP_NUM_THREADS="2")
    assert (code, output) == (0, "0")


# --- show_config ------------------------------------------------------------------------------------------------------------


def test_show_config_prints_what_it_promises(isa, capsys):
    """Version, compiler, instruction set in use and those available, threads, OpenMP"""
    with team(3):
        fb.show_config()
    lines = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    lines = {key: value.strip() for key, value in lines.items()}
    assert lines["version"] == fb.__version__
    assert lines["compiler"].split()[0] in ("GNU", "Clang", "AppleClang") and lines["compiler"].split()[1][0].isdigit()
    assert lines["instruction set"] == isa
    assert lines["instruction sets available"].split(", ") == ISAS
    assert lines["threads"] == "3"
    assert lines["OpenMP"] == str(_core.openmp_version()) if _core.openmp_version() else lines["OpenMP"].startswith("no")


def test_rate_of_multiply_adds_is_positive(isa, dtype):
    assert np.isfinite(runtime.fma_rate(0.002, dtype)) and runtime.fma_rate(0.002, dtype) > 1e7
