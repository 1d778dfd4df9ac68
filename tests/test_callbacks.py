"""Callbacks: each alone, driven through a script of monitored values, and then inside fit."""
import math
from types import SimpleNamespace

import numpy as np
import pytest

import fastbp as fb
from fastbp import callbacks as cb


class FakeModel:
    """Records what a callback does to it: parameters are the number of the epoch, files are a list of paths"""

    def __init__(self, lr=1.0):
        self.optimizer = SimpleNamespace(lr=lr)
        self.value, self.saved = None, []

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]

    def save(self, path):
        self.saved.append(path)


def drive(callback, values, model=None, name="val_loss"):
    """Run a fit that yields these values of `name`, one per epoch, until the callback stops it; epochs run, model"""
    model = model or FakeModel()
    if hasattr(callback, "on_train_begin"):
        callback.on_train_begin(model)
    for epoch, value in enumerate(values):
        model.value = epoch
        if callback.on_epoch_end(model, epoch, {"loss": 0.5, name: value}) is True:
            break
    if hasattr(callback, "on_train_end"):
        callback.on_train_end(model)
    return epoch + 1, model


NAN, INF = math.nan, math.inf
FOREVER = 99  # no epoch of a script is so late


# --- EarlyStopping --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values, patience, min_delta, epochs, best", [
    ([5, 4, 3, 2, 1], 1, 0, 5, 4),
    ([5, 4, 4, 3], 1, 0, 3, 1),  # equal is not better
    ([5, 4, 6, 3, 7, 8, 2], 2, 0, 6, 3),  # the count starts anew at every better epoch
    ([5, 4.5, 4, 3.5, 3], 1, 1, 2, 0),  # 4.5 is not a whole 1 better than 5
    ([5, 4.5, 4, 3.9, 3], 2, 1, 3, 0),  # exactly min_delta is not more than min_delta
    ([5, 4.5, 3.9, 3], 2, 1, 4, 2),  # compared with the best epoch, not with the one before
    ([NAN, NAN, NAN], 2, 0, 2, None),  # NaN is never better,
    ([NAN, 3, NAN, 2, NAN, NAN], 2, 0, 6, 3),  # nor does it hide a better epoch after it
    ([INF, 3, 2], 2, 0, 3, 2),
    ([3, -INF, 2, 1], 2, 0, 4, 1),
])
def test_early_stopping_waits_for_a_better_epoch(values, patience, min_delta, epochs, best):
    callback = cb.EarlyStopping(patience=patience, min_delta=min_delta)
    assert drive(callback, values)[0] == epochs
    assert callback.best_epoch == best
    assert callback.best == (values[best] if best is not None else INF)
    assert callback.stopped_epoch == (epochs - 1 if callback.wait == patience else None)


@pytest.mark.parametrize("values", [[1, 2, 3, 3, 2, 9], [1, 2, 3, NAN, NAN, 9], [-3, -2, -1, -1, -1, 9]])
def test_early_stopping_max_is_the_mirror_image(values):
    callback = cb.EarlyStopping("val_accuracy", patience=2)
    assert drive(callback, values, name="val_accuracy")[0] == 5
    assert (callback.best, callback.best_epoch) == (values[2], 2)


@pytest.mark.parametrize("restore_best, expected", [(True, 1), (False, 3)])
def test_early_stopping_restores_the_best_parameters(restore_best, expected):
    callback = cb.EarlyStopping(patience=2, restore_best=restore_best)
    assert drive(callback, [5, 1, 2, 3, 0])[1].value == expected


def test_early_stopping_restores_when_training_ran_to_its_end():
    assert drive(cb.EarlyStopping(patience=FOREVER), [5, 1, 2, 3])[1].value == 1


def test_early_stopping_has_nothing_to_restore_after_nothing_good():
    assert drive(cb.EarlyStopping(patience=2), [NAN, NAN, NAN])[1].value == 1


# --- ReduceLROnPlateau ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options, values, rates", [
    ({"patience": 1}, [5, 4, 3, 2], [1, 1, 1, 1]),
    ({"patience": 2}, [5, 5, 5, 5, 5], [1, 1, 0.5, 0.5, 0.25]),
    ({"patience": 2}, [5, 5, 4, 4, 4], [1, 1, 1, 1, 0.5]),
    ({"patience": 1}, [5, NAN, NAN, 4], [1, 0.5, 0.25, 0.25]),
    ({"patience": 1, "min_delta": 1}, [5, 4.5, 3.9], [1, 0.5, 0.5]),
    ({"patience": 1, "cooldown": 2}, [5, 5, 5, 5, 5, 5], [1, 0.5, 0.5, 0.5, 0.25, 0.25]),
    ({"patience": 2, "cooldown": 1}, [5, 5, 5, 5, 5, 5], [1, 1, 0.5, 0.5, 0.5, 0.25]),
    ({"patience": 1, "min_lr": 0.4}, [5, 5, 5, 5], [1, 0.5, 0.4, 0.4]),
    ({"patience": 1, "min_lr": 2.0}, [5, 5, 5], [1, 1, 1]),  # a rate below min_lr is not raised
    ({"patience": 1, "mode": "max"}, [1, 2, 2, 3], [1, 1, 0.5, 0.5]),
])
def test_reduce_lr_follows_the_plateau(options, values, rates):
    callback = cb.ReduceLROnPlateau(factor=0.5, **options)
    model = FakeModel()
    callback.on_train_begin(model)
    seen = []
    for epoch, value in enumerate(values):
        assert callback.on_epoch_end(model, epoch, {"val_loss": value}) is not True
        seen.append(model.optimizer.lr)
    assert seen == rates
    assert callback.reductions == [(i, rates[i]) for i in range(1, len(rates)) if rates[i] != rates[i - 1]]


def test_reduce_lr_refuses_a_schedule():
    with pytest.raises(TypeError, match="optimizer.lr .* Exponential"):
        cb.ReduceLROnPlateau().on_train_begin(FakeModel(lr=fb.schedules.Exponential(0.1, 0.9)))


# --- ModelCheckpoint ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values, saved", [([3, 2, 1], [0, 1, 2]), ([3, 4, 2, NAN, 1], [0, 2, 4]), ([NAN, NAN], [])])
def test_checkpoint_saves_better_epochs(values, saved):
    callback = cb.ModelCheckpoint("{epoch}")
    assert drive(callback, values)[1].saved == callback.saved == [str(epoch) for epoch in saved]


def test_checkpoint_saves_every_epoch_on_request():
    _, model = drive(cb.ModelCheckpoint("{epoch}", monitor="absent_loss", save_best_only=False), [3, 4, NAN])
    assert model.saved == ["0", "1", "2"]


def test_checkpoint_path_has_the_fields_of_the_logs(tmp_path):
    callback = cb.ModelCheckpoint(tmp_path / "net-{epoch:03d}-{val_loss:.2f}-{loss}.safetensors")
    assert drive(callback, [0.256])[1].saved == [str(tmp_path / "net-000-0.26-0.5.safetensors")]


def test_checkpoint_without_fields_is_one_path():
    callback = cb.ModelCheckpoint("best")
    assert drive(callback, [3, 2])[1].saved == ["best", "best"]
    assert callback.saved == ["best"]


@pytest.mark.parametrize("path", ["{accuracy}", "{epoch", "{}", "{0}", "{loss:d}", "{loss[0]}", "{loss.x}"])
def test_checkpoint_path_of_other_fields_is_an_error(path):
    with pytest.raises(ValueError) as caught:
        drive(cb.ModelCheckpoint(path), [1.0])
    assert all(word in str(caught.value) for word in ["path", path, "'epoch'", "'loss'", "'val_loss'"])


# --- all of them ----------------------------------------------------------------------------------------------------

WATCHERS = [cb.EarlyStopping, cb.ReduceLROnPlateau, lambda **options: cb.ModelCheckpoint("x", **options)]


@pytest.mark.parametrize("watcher", WATCHERS, ids=["EarlyStopping", "ReduceLROnPlateau", "ModelCheckpoint"])
@pytest.mark.parametrize("monitor, mode", [
    ("loss", "min"), ("val_loss", "min"), ("accuracy", "max"), ("val_accuracy", "max"), ("val_top_accuracy", "max"),
])
def test_callback_mode_auto_goes_by_the_ending(watcher, monitor, mode):
    assert watcher(monitor=monitor).mode == mode


@pytest.mark.parametrize("watcher", WATCHERS, ids=["EarlyStopping", "ReduceLROnPlateau", "ModelCheckpoint"])
@pytest.mark.parametrize("options, error, words", [
    ({"monitor": "val_f1"}, ValueError, ["mode", "'auto'", "'val_f1'", "'min'", "'max'"]),
    ({"monitor": "val_loss", "mode": "up"}, ValueError, ["mode", "'up'", "'min'", "'max'"]),
    ({"monitor": 3}, TypeError, ["monitor", "3", "string"]),
])
def test_callback_monitor_is_checked(watcher, options, error, words):
    with pytest.raises(error) as caught:
        watcher(**options)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("watcher", WATCHERS, ids=["EarlyStopping", "ReduceLROnPlateau", "ModelCheckpoint"])
def test_callback_unknown_monitor_names_what_there_is(watcher):
    with pytest.raises(ValueError) as caught:
        drive(watcher(monitor="val_loss"), [1.0], name="accuracy")
    assert all(word in str(caught.value) for word in ["monitor", "'val_loss'", "'loss'", "'accuracy'"])


@pytest.mark.parametrize("callback, values", [
    (cb.EarlyStopping(patience=2), [3, 2, 4, 5, 1]),
    (cb.ReduceLROnPlateau(patience=2, cooldown=1, factor=0.5), [3, 2, 4, 5, 1, 6, 7, 8]),
    (cb.ModelCheckpoint("{epoch}"), [3, 2, 4, 1]),
], ids=lambda item: type(item).__name__)
def test_callback_starts_anew_in_every_fit(callback, values):
    (first, one), (second, other) = drive(callback, values), drive(callback, values)
    assert (first, one.value, one.saved, one.optimizer.lr) == (second, other.value, other.saved, other.optimizer.lr)


@pytest.mark.parametrize("make, error, words", [
    (lambda: cb.EarlyStopping(patience=0), ValueError, ["patience", "0", "at least 1"]),
    (lambda: cb.EarlyStopping(patience=2.0), TypeError, ["patience", "2.0", "integer"]),
    (lambda: cb.EarlyStopping(min_delta=-1), ValueError, ["min_delta", "-1", "[0, inf)"]),
    (lambda: cb.EarlyStopping(min_delta=NAN), ValueError, ["min_delta", "nan", "finite"]),
    (lambda: cb.EarlyStopping(restore_best=1), TypeError, ["restore_best", "1", "True or False"]),
    (lambda: cb.ReduceLROnPlateau(factor=1.0), ValueError, ["factor", "1.0", "(0, 1)"]),
    (lambda: cb.ReduceLROnPlateau(factor=0), ValueError, ["factor", "0", "(0, 1)"]),
    (lambda: cb.ReduceLROnPlateau(factor="0.1"), TypeError, ["factor", "'0.1'", "number"]),
    (lambda: cb.ReduceLROnPlateau(patience=-1), ValueError, ["patience", "-1", "at least 1"]),
    (lambda: cb.ReduceLROnPlateau(cooldown=-1), ValueError, ["cooldown", "-1", "at least 0"]),
    (lambda: cb.ReduceLROnPlateau(min_lr=-0.1), ValueError, ["min_lr", "-0.1", "[0, inf)"]),
    (lambda: cb.ModelCheckpoint(3), TypeError, ["path", "3", "PathLike"]),
    (lambda: cb.ModelCheckpoint(b"x"), TypeError, ["path", "bytes", "str"]),
    (lambda: cb.ModelCheckpoint("x", save_best_only="no"), TypeError, ["save_best_only", "'no'", "True or False"]),
])
def test_callback_options_are_checked(make, error, words):
    with pytest.raises(error) as caught:
        make()
    assert all(word in str(caught.value) for word in words), str(caught.value)


# --- inside fit -----------------------------------------------------------------------------------------------------


def digits_like(rng, rows=60):
    x = rng.standard_normal((rows, 5)).astype(np.float32)
    return x, (x[:, 0] + x[:, 1] > 0).astype(np.int64)


def classifier(seed=0):
    return fb.Sequential(fb.Linear(5, 8), fb.ReLU(), fb.Linear(8, 2), seed=seed)


def fit(model, data, callbacks, epochs=4, lr=0.1, **options):
    x, y = data
    return model.fit(x, y, loss=fb.CrossEntropyLoss(), optimizer=fb.SGD(lr=lr), epochs=epochs, batch_size=16, seed=0,
                     callbacks=callbacks, progress=False, **options)


class Recorder:
    def __init__(self, name="", stop_at=None, events=None):
        self.name, self.stop_at, self.events = name, stop_at, [] if events is None else events

    def record(self, event, *details):
        self.events.append((self.name + event, *details))
        return self.stop_at == (event, *details)

    def on_train_begin(self, model):
        self.record("train_begin", model.optimizer.lr)

    def on_epoch_begin(self, model, epoch, logs):
        self.record("epoch_begin", epoch)

    def on_epoch_end(self, model, epoch, logs):
        self.logs = dict(logs)
        return self.record("epoch_end", epoch)

    def on_train_end(self, model):
        self.record("train_end")


class BatchRecorder(Recorder):
    def on_batch_end(self, model, batch, logs):
        assert math.isfinite(logs["loss"])
        return self.record("batch_end", batch)


def test_fit_calls_back_in_order(rng):
    recorder = Recorder()
    fit(classifier(), digits_like(rng), [recorder], epochs=2)
    assert recorder.events == [("train_begin", 0.1), ("epoch_begin", 0), ("epoch_end", 0), ("epoch_begin", 1),
                               ("epoch_end", 1), ("train_end",)]


def test_fit_calls_back_after_every_batch(rng):
    recorder = BatchRecorder()
    fit(classifier(), digits_like(rng), [recorder], epochs=2)
    assert [event for event in recorder.events if event[0] == "batch_end"] == [("batch_end", b) for b in range(4)] * 2


def test_fit_calls_callbacks_in_the_order_given(rng):
    events = []
    fit(classifier(), digits_like(rng), [Recorder("a:", events=events), Recorder("b:", events=events)], epochs=1)
    assert [name for name, *_ in events if "epoch_end" in name] == ["a:epoch_end", "b:epoch_end"]


@pytest.mark.parametrize("recorder, last", [
    (Recorder(stop_at=("epoch_end", 1)), ("epoch_end", 1)),
    (BatchRecorder(stop_at=("batch_end", 2)), ("batch_end", 2)),
], ids=["epoch", "batch"])
def test_fit_stops_when_told(recorder, last, rng):
    fit(classifier(), digits_like(rng), [recorder])
    assert last in recorder.events
    assert recorder.events[-1] == ("train_end",)
    assert ("epoch_begin", 2) not in recorder.events
    assert ("batch_end", 3) not in recorder.events


def test_fit_stops_only_for_true(rng):
    """A callback that returns something else by accident, a number or an array, does not stop"""

    class Chatty:
        def on_epoch_end(self, model, epoch, logs):
            return np.ones(3)

    assert len(fit(classifier(), digits_like(rng), [Chatty()]).history["loss"]) == 4


def test_fit_logs_are_the_history(rng):
    recorder, (x, y) = Recorder(), digits_like(rng)
    history = fit(classifier(), (x, y), [recorder], validation_data=(x, y), metrics=("accuracy",)).history
    assert recorder.logs == {name: values[-1] for name, values in history.items()}
    assert {"loss", "val_loss", "accuracy", "val_accuracy"} <= recorder.logs.keys()


@pytest.mark.parametrize("kind", [Recorder, BatchRecorder])
def test_fit_has_the_same_bits_with_callbacks(kind, rng, fingerprint):
    data, plain, watched = digits_like(rng), classifier(), classifier()
    history = fit(plain, data, [])
    assert fit(watched, data, [kind()]).history == history.history
    assert fingerprint(plain.state_dict()) == fingerprint(watched.state_dict())


def test_fit_lets_a_callback_read_and_use_the_model(rng, tmp_path, fingerprint):
    x, y = data = digits_like(rng)

    class Reader:
        def on_epoch_end(self, model, epoch, logs):
            assert model.predict(x).shape == (60, 2)
            assert model.evaluate(x, y, loss=fb.CrossEntropyLoss()).keys() == {"loss"}
            model.save(tmp_path / "m.safetensors")

    plain, read = classifier(), classifier()
    fit(plain, data, [])
    fit(read, data, [Reader()])
    assert fingerprint(plain.state_dict()) == fingerprint(read.state_dict())
    assert fingerprint(fb.load(tmp_path / "m.safetensors").state_dict()) == fingerprint(plain.state_dict())


def test_fit_passes_on_what_a_callback_raises(rng):
    class Broken:
        def on_epoch_end(self, model, epoch, logs):
            raise LookupError("mine")

    model = classifier()
    with pytest.raises(LookupError, match="mine"):
        fit(model, digits_like(rng), [Broken()])
    assert len(fit(model, digits_like(rng), []).history["loss"]) == 4  # the model is free again


def test_fit_unknown_monitor_is_found_after_the_first_epoch(rng):
    recorder = Recorder()
    with pytest.raises(ValueError, match="monitor .*'loss'.*'val_loss'"):
        fit(classifier(), digits_like(rng), [recorder, fb.EarlyStopping()])
    assert ("epoch_end", 0) in recorder.events and ("epoch_begin", 1) not in recorder.events


def test_fit_early_stopping_leaves_the_best_epoch(rng, fingerprint):
    """Trained on one labelling and validated on its opposite, the first epoch is the best"""
    x, y = digits_like(rng)
    callback, stopped, once = fb.EarlyStopping(patience=3), classifier(), classifier()
    history = fit(stopped, (x, y), [callback], epochs=50, validation_data=(x, 1 - y))
    fit(once, (x, y), [], epochs=callback.best_epoch + 1)
    assert len(history.history["loss"]) == callback.stopped_epoch + 1 == callback.best_epoch + 4
    assert callback.best == min(history.history["val_loss"])
    assert fingerprint(stopped.state_dict()) == fingerprint(once.state_dict())


def test_fit_reduce_lr_changes_the_next_epoch(rng, fingerprint):
    """Every epoch counts as a plateau: the same as three fits of one epoch with rates 1, 1/2 and 1/4 of the first"""
    data, reduced, stepped = digits_like(rng), classifier(), classifier()
    callback = fb.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1e9)
    optimizer = fb.SGD(lr=0.1)
    x, y = data
    options = dict(loss=fb.CrossEntropyLoss(), batch_size=16, progress=False)
    reduced.fit(x, y, optimizer=optimizer, epochs=4, seed=np.random.default_rng(5), callbacks=[callback], **options)
    generator, own = np.random.default_rng(5), fb.SGD(lr=0.1)
    for rate in (0.1, 0.1, 0.05, 0.025):  # the first epoch is better than nothing
        own.lr = rate
        stepped.fit(x, y, optimizer=own, epochs=1, seed=generator, **options)
    assert optimizer.lr == 0.0125 and [rate for _, rate in callback.reductions] == [0.05, 0.025, 0.0125]
    assert fingerprint(reduced.state_dict()) == fingerprint(stepped.state_dict())


def test_fit_checkpoint_holds_the_best_epoch(rng, tmp_path, fingerprint):
    x, y = digits_like(rng)
    stopper, once = fb.EarlyStopping(patience=3), classifier()
    checkpoint = fb.ModelCheckpoint(tmp_path / "best-{epoch}.safetensors")
    model = classifier()
    fit(model, (x, y), [stopper, checkpoint], epochs=20, validation_data=(x, 1 - y))
    assert fingerprint(fb.load(checkpoint.saved[-1]).state_dict()) == fingerprint(model.state_dict())
    assert checkpoint.best_epoch == stopper.best_epoch
