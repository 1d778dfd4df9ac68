"""Manners towards the rest of the process: fork, Ctrl-C, threads, floating-point state, memory, pickles, data that is not finite.

FASTBP_TEST_FORKS=100 forks that many children instead of 10.
"""
import copy
import gc
import math
import os
import pickle
import re
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastbp as fb

FORKS = int(os.environ.get("FASTBP_TEST_FORKS", 10))


def data(rows=96, features=20, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, features)).astype(np.float32), rng.integers(0, classes, rows)


def network(seed=0, dtype="float32", dropout=0.0):
    return fb.Sequential(fb.Linear(20, 32), fb.ReLU(), fb.Dropout(dropout), fb.Linear(32, 4), dtype=dtype, seed=seed)


def fit(model, optimizer=None, epochs=2, seed=0, **options):
    x, y = data()
    return model.fit(x, y, loss=fb.CrossEntropyLoss(), optimizer=optimizer or fb.Adam(lr=0.01), epochs=epochs, batch_size=16,
                     seed=seed, progress=False, **options)


def trained(fingerprint, seed=0, **options):
    """The bits that training a fresh network gives"""
    model = network(seed)
    history = fit(model, **options).history
    return fingerprint(model.state_dict(), history)


# --- fork ------------------------------------------------------------------------------------------------------------

# What the scripts below have in common. A child reports through its pipe; one that hangs is ended by its alarm.
FORK = """
import hashlib, os, signal, sys, threading
import numpy as np
import fastbp as fb
from fastbp import _core

_core._set_grain(1)  # even small steps are divided among the threads
fb.set_num_threads(2)
rng = np.random.default_rng(0)
x, y = rng.standard_normal((200, 20)).astype(np.float32), rng.integers(0, 4, 200)

def train(model=None, **options):
    model = model or fb.Sequential(fb.Linear(20, 33), fb.Tanh(), fb.Linear(33, 4), seed=0)
    history = model.fit(x, y, loss=fb.CrossEntropyLoss(), optimizer=fb.Adam(lr=0.01), epochs=2, batch_size=32, seed=0,
                        progress=False, **options)
    return hashlib.sha256(model.flat_parameters.tobytes() + repr(history.history).encode()).hexdigest()

def in_child(work):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(10)
        try:
            os.write(write, work().encode())
        finally:
            os._exit(0)
    os.close(write)
    return child, read

def result(child, read):
    with os.fdopen(read) as pipe:
        text = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return text if status == 0 else f"exit status {status}"
"""


def test_forked_children_train_with_the_same_bits(fresh_process):
    out = fresh_process(FORK + f"""
own = train()
children = [in_child(train) for _ in range({FORKS})]
results = [result(*child) for child in children]
print(len(results), set(results) == {{own}} == {{train()}}, set(results) - {{own}})
""")
    assert out == f"{FORKS} True set()"


def test_fork_in_a_forked_child_trains_with_the_same_bits(fresh_process):
    """The child trains before it forks, and after"""
    out = fresh_process(FORK + """
own = train()
def nested():
    return train() + result(*in_child(lambda: train() + result(*in_child(train)))) + train()
print(result(*in_child(nested)) == own * 4)
""")
    assert out == "True"


def test_fork_before_the_first_training_is_no_different(fresh_process):
    out = fresh_process(FORK + """
first = result(*in_child(train))
print(first == train() == result(*in_child(train)))
""")
    assert out == "True"


def test_fork_while_another_thread_trains(fresh_process):
    """Also the model that the other thread has in use: it is free in the child, whatever its parameters are at that moment"""
    out = fresh_process(FORK + """
own = train()
busy = fb.Sequential(fb.Linear(20, 33), fb.Tanh(), fb.Linear(33, 4), seed=0)
running, enough = threading.Event(), threading.Event()
class Watch:
    def on_batch_end(self, model, batch, logs):
        running.set()
        return enough.is_set()
def forever():
    busy.fit(x, y, loss=fb.CrossEntropyLoss(), optimizer=fb.SGD(lr=1e-3), epochs=10**9, callbacks=[Watch()], progress=False)
thread = threading.Thread(target=forever)
thread.start()
running.wait()
def both():
    train(busy)
    return train()
children = [in_child(both) for _ in range(4)]
results = {result(*child) for child in children}
enough.set()
thread.join()
print(results == {own}, results)
""")
    assert out.startswith("True"), out


def test_fork_inside_a_callback_leaves_both_sides_working(fresh_process):
    """The child goes on with the very fit it was forked in"""
    out = fresh_process(FORK + """
own = train()
children = []
class Forks:
    def on_epoch_end(self, model, epoch, logs):
        if epoch == 0:
            read, self.write = os.pipe()
            child = os.fork()
            self.is_child = not child
            if self.is_child:
                signal.alarm(10)
            else:
                os.close(self.write)
                children.append((child, read))
forks = Forks()
mine = train(callbacks=[forks])
if forks.is_child:
    os.write(forks.write, mine.encode())
    os._exit(0)
print(mine == own == result(*children[0]))
""")
    assert out == "True"


def test_multiprocessing_fork_trains_with_the_same_bits(fresh_process):
    out = fresh_process(FORK + """
import multiprocessing
own = train()
def work(_):
    return train()
with multiprocessing.get_context("fork").Pool(3) as pool:
    results = pool.map_async(work, range(6)).get(timeout=60)
print(set(results) == {own})
""")
    assert out == "True"


def test_forked_child_says_that_it_has_one_thread(fresh_process):
    assert fresh_process(FORK + """
train()
print(fb.get_num_threads(), result(*in_child(lambda: str(fb.get_num_threads()))))
""") == "2 1"


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------

INTERRUPT = """
import hashlib, os, signal, threading, time
import numpy as np
import fastbp as fb

rng = np.random.default_rng(0)
x, y = rng.standard_normal((640, 64)).astype(np.float32), rng.integers(0, 10, 640)
loss = fb.CrossEntropyLoss()

def network():
    return fb.Sequential(fb.Linear(64, 256), fb.ReLU(), fb.Linear(256, 256), fb.ReLU(), fb.Linear(256, 10), seed=0)

def optimizer():
    return fb.SGD(lr=1e-3, momentum=0.9)

def bits(model, optimizer):
    return hashlib.sha256(model.flat_parameters.tobytes() + repr(optimizer.state_dict()).encode()).digest()
"""


def test_interrupt_stops_between_two_steps(fresh_process):
    """The parameters and the optimizer's state are those after k whole steps, for some k, and training can go on"""
    out = fresh_process(INTERRUPT + """
stopped = []
for delay in rng.uniform(0.005, 0.08, 5):
    model, sgd = network(), optimizer()
    timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        model.fit(x, y, loss=loss, optimizer=sgd, epochs=10**6, batch_size=32, seed=0, progress=False)
        raise SystemExit("fit returned")
    except KeyboardInterrupt:
        assert np.isfinite(model.flat_parameters).all()
        stopped.append((sgd.state_dict()["step"], bits(model, sgd)))
        before = model.flat_parameters.copy()
        history = model.fit(x, y, loss=loss, optimizer=sgd, epochs=1, batch_size=32, seed=0, progress=False)
        assert np.isfinite(history.history["loss"][0]) and not np.array_equal(model.flat_parameters, before)
    timer.join()

model, sgd, generator, steps = network(), optimizer(), np.random.default_rng(0), {}
last, step = max(k for k, _ in stopped), 0
steps[0] = bits(model, sgd)
while step < last:
    for xb, yb in fb.minibatches(x, y, batch_size=32, seed=generator):
        model.backward(loss.value_and_grad(model.forward(xb), yb)[1])
        sgd.step(model)
        step += 1
        if step in dict(stopped):
            steps[step] = bits(model, sgd)
print(len(stopped), all(steps[k] == found for k, found in stopped if k), [k for k, _ in stopped if k and steps[k] != dict(stopped)[k]])
""")
    assert out == "5 True []"


def test_interrupt_is_seen_within_a_single_long_epoch(fresh_process):
    """One epoch of 128,000 steps: far more than a slice"""
    out = fresh_process(INTERRUPT + """
x, y = np.tile(x, (200, 1)), np.tile(y, 200)
model, sgd = network(), optimizer()
threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    model.fit(x, y, loss=loss, optimizer=sgd, epochs=1, batch_size=1, shuffle=False, progress=False)
    print("fit returned")
except KeyboardInterrupt:
    print(sgd.state_dict()["step"] < 128_000, np.isfinite(model.flat_parameters).all())
""")
    assert out == "True True"


def test_interrupt_handler_of_the_caller_is_left_alone(fresh_process):
    """A handler that only takes note does not stop the training, and is still there afterwards"""
    out = fresh_process(INTERRUPT + """
seen = []
def handler(number, frame):
    seen.append(number)
signal.signal(signal.SIGINT, handler)
class Enough:
    def on_epoch_end(self, model, epoch, logs):
        os.kill(os.getpid(), signal.SIGINT)
        return len(seen) >= 3
model = network()
model.fit(x, y, loss=loss, optimizer=optimizer(), epochs=10**6, batch_size=32, seed=0, callbacks=[Enough()], progress=False)
print(len(seen) >= 3, signal.getsignal(signal.SIGINT) is handler)
""")
    assert out == "True True"


# --- threads ---------------------------------------------------------------------------------------------------------


class Gate:
    """A callback that holds its fit after the first epoch until told to go on"""

    def __init__(self):
        self.reached, self.open = threading.Event(), threading.Event()

    def on_epoch_end(self, model, epoch, logs):
        self.reached.set()
        assert self.open.wait(30)


def test_second_fit_on_a_model_is_refused_and_the_first_undisturbed(fingerprint):
    model, gate = network(), Gate()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(fit, model, callbacks=[gate])
        assert gate.reached.wait(30)
        with pytest.raises(RuntimeError, match="trained"):
            fit(model)
        gate.open.set()
        history = first.result(30).history
    assert fingerprint(model.state_dict(), history) == trained(fingerprint)
    fit(model)


def test_fit_inside_its_own_callback_is_refused(fingerprint):
    class Recursive:
        def on_epoch_end(self, model, epoch, logs):
            with pytest.raises(RuntimeError, match="trained"):
                fit(model)

    model = network()
    history = fit(model, callbacks=[Recursive()]).history
    assert fingerprint(model.state_dict(), history) == trained(fingerprint)


def test_model_is_free_again_after_a_fit_that_failed(fingerprint):
    class Broken:
        def on_train_begin(self, model):
            raise LookupError

    model = network()
    with pytest.raises(LookupError):
        fit(model, callbacks=[Broken()])
    history = fit(model).history
    assert fingerprint(model.state_dict(), history) == trained(fingerprint)


@pytest.mark.parametrize("threads", [1, 2])
def test_fits_on_two_models_run_side_by_side_with_the_same_bits(threads, fingerprint, no_grain):
    """Each fit waits in the middle for the other to get there, so they do overlap"""
    sequential = [trained(fingerprint, seed, epochs=5) for seed in range(4)]
    barrier = threading.Barrier(4)

    class Meet:
        def on_epoch_end(self, model, epoch, logs):
            barrier.wait(30)

    def work(seed):
        with fb.num_threads(threads):
            return trained(fingerprint, seed, epochs=5, callbacks=[Meet()])

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == sequential


def test_predict_from_eight_threads_is_bitwise_equal(no_grain):
    model = network()
    xs = [data(rows, seed=rows)[0] for rows in (1, 2, 17, 96, 300, 301, 511, 1000)]
    expected = [model.predict(x) for x in xs]
    barrier = threading.Barrier(8)

    def work(i):
        barrier.wait(30)
        return all(np.array_equal(model.predict(xs[(i + k) % 8]), expected[(i + k) % 8]) for k in range(40))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_predict_while_another_model_trains_is_bitwise_equal(no_grain):
    model, busy, gate = network(), network(1), threading.Event()
    x = data(500)[0]
    expected = model.predict(x)

    class Until:
        def on_batch_end(self, model, batch, logs):
            return gate.is_set()

    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(fit, busy, epochs=10**6, callbacks=[Until()])
        equal = all(np.array_equal(model.predict(x), expected) for _ in range(50))
        gate.set()
        training.result(30)
    assert equal


def test_reading_a_model_in_training_is_safe(no_grain):
    """What is read is unspecified; that it is read is not"""
    model, gate, x = network(), threading.Event(), data(50)[0]

    class Until:
        def on_batch_end(self, model, batch, logs):
            return gate.is_set()

    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(fit, model, epochs=10**6, callbacks=[Until()])
        for _ in range(50):
            assert model.predict(x).shape == (50, 4)
            assert model.state_dict()["0.weight"].shape == (32, 20)
        gate.set()
        training.result(30)


def test_thread_setting_of_a_block_is_the_calling_threads_own():
    inside, done = threading.Event(), threading.Event()
    before = fb.get_num_threads()

    def work():
        with fb.num_threads(5):
            inside.set()
            done.wait(30)
            return fb.get_num_threads()

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(work)
        inside.wait(30)
        here = fb.get_num_threads()
        done.set()
        assert (here, other.result(30)) == (before, 5)
    with pytest.raises(LookupError), fb.num_threads(3):
        assert fb.get_num_threads() == 3
        raise LookupError
    assert fb.get_num_threads() == before


# --- data and losses that are not finite -----------------------------------------------------------------------------


class Never:
    """A callback that must not be called: nothing has started"""

    def on_train_begin(self, model):
        raise AssertionError("training has begun")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("row, column", [(0, 0), (7, 2), (95, 19)])
@pytest.mark.parametrize("batch_size", [1, 96])
def test_non_finite_data_is_found_before_the_first_step(value, row, column, batch_size, fingerprint, dtype):
    x, y = data()
    x[row, column] = value
    model, optimizer = network(dtype=dtype), fb.Adam(lr=0.01)
    before = fingerprint(model.state_dict(), optimizer.state_dict())
    with pytest.raises(ValueError) as caught:
        model.fit(x, y, loss=fb.CrossEntropyLoss(), optimizer=optimizer, batch_size=batch_size, callbacks=[Never()], progress=False)
    assert all(word in str(caught.value) for word in ["x", str(value), f"row {row}", f"column {column}"])
    assert fingerprint(model.state_dict(), optimizer.state_dict()) == before


def test_non_finite_data_names_the_first_of_several():
    x, y = data()
    x[60, 1] = x[41, 9] = x[41, 3] = math.nan
    with pytest.raises(ValueError, match="row 41, column 3"):
        network().fit(x, y, loss=fb.CrossEntropyLoss(), optimizer=fb.SGD(lr=0.1), progress=False)


@pytest.mark.parametrize("lr", [1e2, 1e10, 1e30])
def test_divergence_keeps_the_parameters_before_the_first_bad_step(lr, dtype, rng):
    """Beside a loop that watches every step: the same epoch and batch in the message, the same parameters afterwards"""
    x, y = rng.standard_normal((40, 3)), rng.standard_normal((40, 2))
    loss = fb.MSELoss()

    def network():
        return fb.Sequential(fb.Linear(3, 2), dtype=dtype, seed=0)

    def until_it_breaks():
        model, optimizer, generator = network(), fb.SGD(lr=lr), np.random.default_rng(3)
        for epoch in range(100):
            for batch, (xb, yb) in enumerate(fb.minibatches(x, y, batch_size=8, seed=generator)):
                before = model.flat_parameters.copy()
                with np.errstate(all="ignore"):
                    value, dout = loss.value_and_grad(model.forward(xb), yb)
                    if math.isfinite(value):
                        model.backward(dout)
                        optimizer.step(model)
                if not (math.isfinite(value) and np.isfinite(model.flat_parameters).all()):
                    return epoch, batch, before

    epoch, batch, kept = until_it_breaks()
    model = network()
    with pytest.raises(FloatingPointError) as caught:
        model.fit(x, y, loss=loss, optimizer=fb.SGD(lr=lr), epochs=100, batch_size=8, seed=3, progress=False)
    assert np.isfinite(model.flat_parameters).all() and np.array_equal(model.flat_parameters, kept)
    message = str(caught.value)
    assert re.search(rf"epoch {epoch + 1}\b.*batch {batch + 1}\b.*loss", message), message
    model.flat_parameters[:] = 0
    assert model.fit(x, y, loss=loss, optimizer=fb.SGD(lr=0.01), progress=False).history["loss"][0] < 2


# --- floating-point state --------------------------------------------------------------------------------------------

SUBNORMAL = """
import sys, threading
import numpy as np

def check(when):
    one = np.array([1.0], np.float32)
    tiny = np.finfo(np.float32).smallest_subnormal
    assert tiny > 0 and (one * tiny)[0] == tiny, f"flushed to zero {when}"  # the array's loop, not a constant
    assert (np.array([2.0**-1074]) * np.array([1.0]))[0] == 2.0**-1074, f"float64 flushed to zero {when}"
    assert (np.array([2.0**-149], np.float32) + np.array([2.0**-149], np.float32))[0] == np.float32(2.0**-148), f"operands flushed {when}"
    third = np.array([1.0], np.float32) / np.array([3.0], np.float32)
    assert third[0] == np.float32(0.333333343267440796), f"rounding changed {when}"

def everywhere(when):
    check(when)
    thread = threading.Thread(target=check, args=(when + " in a thread",))
    thread.start()
    thread.join()

import fastbp as fb
everywhere("by the import")
from fastbp import _core
_core._set_grain(1)
x, y = np.ones((64, 5), np.float32), np.zeros(64, np.int64)
model = fb.Sequential(fb.Linear(5, 8), fb.Sigmoid(), fb.Linear(8, 3), seed=0)
model.fit(x, y, loss=fb.CrossEntropyLoss(), optimizer=fb.Adam(), epochs=3, progress=False)
everywhere("by fit")
model.predict(x)
model.backward(np.zeros((64, 3), np.float32) + model.forward(x))
everywhere("by forward, backward and predict")
fb.kernels.softmax(x)
fb.kernels.matmul(x, x.T)
everywhere("by a kernel")
try:
    fb.Sequential(fb.Linear(5, 3)).fit(x, np.ones((64, 3)), loss=fb.MSELoss(), optimizer=fb.SGD(lr=1e30), epochs=99, progress=False)
except FloatingPointError:
    everywhere("by divergence")
print("as before")
"""


def test_floating_point_state_is_left_alone(fresh_process):
    assert fresh_process(SUBNORMAL) == "as before"


def test_floating_point_errors_stay_those_of_the_caller():
    """What the kernels do inside raises none of NumPy's warnings, whatever the caller's settings"""
    with np.errstate(all="raise"):
        model = network()
        fit(model)
        model.predict(data()[0] * np.float32(1e30))
        assert fb.kernels.sigmoid_forward(np.array([[1e4, -1e4]], np.float32)).tolist() == [[1.0, 0.0]]


def test_import_and_use_leave_the_process_as_it_was(fresh_process):
    """Signal handlers, environment, warnings, NumPy's error state, the number of Python threads"""
    out = fresh_process("""
import os, signal, sys, threading, warnings
import numpy as np
def state():
    return ({n: signal.getsignal(n) for n in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}}, dict(os.environ),
            list(warnings.filters), np.geterr(), threading.active_count(), sys.getswitchinterval(), sys.getrecursionlimit())
before = state()
import fastbp as fb
imported = state()
x, y = np.ones((64, 5), np.float32), np.zeros(64, np.int64)
fb.Sequential(fb.Linear(5, 3)).fit(x, y, loss=fb.CrossEntropyLoss(), optimizer=fb.Adam(), epochs=3, progress=False)
print(before == imported == state())
""")
    assert out == "True"


def test_random_state_of_numpy_and_python_is_not_touched():
    import random

    before = random.getstate(), pickle.dumps(np.random.get_state())  # noqa: NPY002
    network(seed=None)
    fit(network(dropout=0.5), seed=None)
    assert (random.getstate(), pickle.dumps(np.random.get_state())) == before  # noqa: NPY002


# --- pickles and copies ----------------------------------------------------------------------------------------------

COPIES = [pytest.param(copy.deepcopy, id="deepcopy"), *(
    pytest.param(lambda value, protocol=protocol: pickle.loads(pickle.dumps(value, protocol)), id=f"pickle {protocol}")
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1))]


@pytest.mark.parametrize("copied", COPIES)
def test_copy_of_a_model_is_equal_and_independent(copied, dtype, fingerprint):
    model = network(dtype=dtype)
    fit(model)
    twin = copied(model)
    before = fingerprint(model.state_dict())
    assert fingerprint(twin.state_dict()) == before and twin.dtype == model.dtype and twin.config() == model.config()
    assert np.array_equal(twin.predict(data()[0]), model.predict(data()[0]))
    assert not np.shares_memory(twin.flat_parameters, model.flat_parameters)
    twin.flat_parameters[:] = 0
    assert not twin.predict(data()[0]).any() and not twin.parameters["0.weight"].any()  # its views are of its own memory
    assert fingerprint(model.state_dict()) == before


@pytest.mark.parametrize("copied", COPIES)
def test_copy_of_model_and_optimizer_goes_on_with_the_same_bits(copied, fingerprint):
    model, optimizer = network(dropout=0.3), fb.Adam(lr=0.01)
    fit(model, optimizer)
    twin, its_optimizer = copied((model, optimizer))
    first, second = fit(model, optimizer, seed=1).history, fit(twin, its_optimizer, seed=1).history
    assert fingerprint(twin.state_dict(), its_optimizer.state_dict(), second) == fingerprint(model.state_dict(), optimizer.state_dict(), first)


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("make", [
    lambda: fb.SGD(lr=0.1, momentum=0.9), lambda: fb.AdamW(lr=fb.schedules.Cosine(0.1, 10)), lambda: fb.CrossEntropyLoss(label_smoothing=0.1),
    lambda: fb.HuberLoss(delta=0.5), lambda: fb.QuantileLoss(0.3), lambda: fb.PoissonLoss("sum"),
    lambda: fb.Linear(3, 4, init="zeros"), lambda: fb.LeakyReLU(0.2), lambda: fb.EarlyStopping(patience=3),
])
def test_copies_of_the_parts_say_the_same(copied, make):
    part = make()
    assert type(copied(part)) is type(part)
    if type(part).__repr__ is not object.__repr__:
        assert repr(copied(part)) == repr(part)


def test_copy_made_inside_a_callback_is_free(fingerprint):
    """A model that is being trained can be copied; the copy is not being trained"""
    copies = []

    class Copies:
        def on_epoch_end(self, model, epoch, logs):
            copies.append(copy.deepcopy(model))

    fit(network(), callbacks=[Copies()])
    fit(copies[0], epochs=1)
    assert copies[0].optimizer is None


def test_history_pickles():
    history = fit(network())
    assert pickle.loads(pickle.dumps(history)).history == history.history


# --- memory ----------------------------------------------------------------------------------------------------------


def test_models_and_optimizers_are_freed():
    """By reference counting alone, and with them their arrays"""
    gc.collect()
    gc.disable()
    try:
        model, optimizer = network(), fb.Adam(lr=0.01)
        history = fit(model, optimizer)
        model.backward(model.forward(data()[0]))
        model.predict(data()[0])
        seen = [weakref.ref(part) for part in (model, optimizer, history)]
        del model, optimizer, history
        assert [ref() for ref in seen] == [None] * 3
    finally:
        gc.enable()


def test_parameter_views_outlive_their_model():
    model = network()
    view, expected = model.parameters["0.weight"], model.state_dict()["0.weight"]
    del model
    gc.collect()
    network(seed=1)  # would take the memory if it were free
    assert np.array_equal(view, expected)


def test_a_thousand_fits_leave_no_memory_behind(fresh_process):
    """Nor do as many predictions, steps, errors, copies and kernel calls. 1 MB allowed: a leak of 1 kB per round is found"""
    out = fresh_process("""
import copy, gc, os, pickle
import numpy as np
import fastbp as fb
x, y = np.ones((8, 3), np.float32), np.zeros(8, np.int64)
loss = fb.CrossEntropyLoss()
def once():
    model = fb.Sequential(fb.Linear(3, 64), fb.ReLU(), fb.Dropout(0.5), fb.Linear(64, 2), seed=0)
    model.fit(x, y, loss=loss, optimizer=fb.Adam(), batch_size=4, metrics=("accuracy",), validation_data=(x, y), progress=False)
    model.predict(x)
    sgd = fb.SGD(lr=0.1)
    model.backward(loss.value_and_grad(model.forward(x), y)[1])
    sgd.step(model)
    copy.deepcopy(model).load_state_dict(model.state_dict())
    for bad in (x[:, 1:], None, x[0]):
        try:
            model.predict(bad)
        except (ValueError, TypeError):
            pass
    try:
        model.fit(x, y + 9, loss=loss, optimizer=sgd, progress=False)
    except ValueError:
        pass
    fb.kernels.softmax(fb.kernels.matmul(x, x.T))
def memory():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
for _ in range(200):
    once()
before = memory()
for _ in range(1000):
    once()
print(memory() - before)
""")
    assert int(out) < 1 << 20


def test_refcounts_of_the_data_are_given_back():
    import sys

    x, y = data()
    before = sys.getrefcount(x), sys.getrefcount(y)
    model = network()
    model.fit(x, y, loss=fb.CrossEntropyLoss(), optimizer=fb.SGD(lr=0.1), progress=False)
    model.predict(x)
    out = model.forward(x)
    fb.kernels.matmul(x, x.T)
    with pytest.raises(ValueError):
        model.fit(x, y + 9, loss=fb.CrossEntropyLoss(), optimizer=fb.SGD(lr=0.1), progress=False)
    del model, out
    assert (sys.getrefcount(x), sys.getrefcount(y)) == before


def test_predictions_of_different_sizes_at_the_same_time(rng):
    """Each has memory of its own: a small one's is never taken for a large one's"""
    model = fb.Sequential(fb.Linear(64, 200), fb.ReLU(), fb.Linear(200, 10), seed=0)
    x = rng.standard_normal((3000, 64)).astype(np.float32)
    expected = model.predict(x)
    with ThreadPoolExecutor(4) as pool:
        sizes = [1, 3000, 40, 700] * 40
        for n, out in zip(sizes, pool.map(lambda n: model.predict(x[:n]), sizes), strict=True):
            assert np.array_equal(out, expected[:n])
