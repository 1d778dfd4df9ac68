"""Model files: what is written comes back bit for bit, what is damaged or forged is refused, what was there survives a failure."""
import errno
import json
import math
import os
import stat
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import fastbp as fb
from fastbp import io

ARCHITECTURES = {
    "linear": lambda: [fb.Linear(3, 2)],
    "no bias": lambda: [fb.Linear(3, 2, bias=False)],
    "no parameters": lambda: [fb.ReLU()],
    "deep": lambda: [fb.Linear(5, 7), fb.ReLU(), fb.Linear(7, 4), fb.Tanh(), fb.Linear(4, 1), fb.Sigmoid()],
    "activations": lambda: [fb.Linear(3, 4), fb.LeakyReLU(0.2), fb.Softplus(), fb.GELU(), fb.SiLU(), fb.ELU(), fb.Identity(),
                            fb.Linear(4, 4), fb.Softmax()],
    "dropout": lambda: [fb.Linear(6, 8), fb.Dropout(0.25), fb.ReLU(), fb.Linear(8, 2)],
    "shared": lambda: (lambda layer: [layer, fb.Tanh(), layer, fb.Tanh(), layer])(fb.Linear(3, 3)),
    "initialised": lambda: [fb.Linear(3, 4, init="kaiming_normal"), fb.Linear(4, 2, init=lambda rng, shape: rng.normal(size=shape))],
}


@pytest.fixture
def model(dtype):
    return fb.Sequential(fb.Linear(3, 4), fb.ReLU(), fb.Linear(4, 2), dtype=dtype, seed=5)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def forge(path, model, config=None, tensors=None, document=None):
    """A file with a right checksum that says what the arguments say: what an attacker would write"""
    state = model.state_dict() if tensors is None else tensors
    data = io._serialise(state, config or model.config())
    if document is not None:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8:8 + length])
        entry = json.loads(header["__metadata__"]["fastbp"])
        text = document(entry) if callable(document) else document
        header["__metadata__"]["fastbp"] = text if isinstance(text, str) else json.dumps(text, separators=(",", ":"))
        head = json.dumps(header, separators=(",", ":")).encode()
        data = len(head).to_bytes(8, "little") + head + data[8 + length:]
        if rb"{\"sha256\":\"" in data:
            at = io._digest_position(data)
            data = data[:at] + io._digest(data, at).encode() + data[at + 64:]
    path.write_bytes(data)


def refused(path, *words):
    with pytest.raises(ValueError) as caught:
        fb.load(path)
    message = str(caught.value)
    assert all(word in message for word in ["path", str(path), "expected", *words]), message


# --- what is written comes back ------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_round_trip_is_bitwise(architecture, dtype, path, fingerprint):
    model = fb.Sequential(*ARCHITECTURES[architecture](), dtype=dtype, seed=5)
    model.save(path)
    loaded = fb.load(path)
    assert type(loaded) is type(model) and loaded.dtype == model.dtype
    assert fingerprint(loaded.state_dict()) == fingerprint(model.state_dict())
    assert list(loaded.parameters) == list(model.parameters)
    assert loaded.summary() == model.summary()


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "no parameters"])
def test_round_trip_computes_the_same(architecture, dtype, path, rng):
    model = fb.Sequential(*ARCHITECTURES[architecture](), dtype=dtype, seed=5)
    x = rng.standard_normal((9, model.parameters["0.weight"].shape[1]))
    model.save(path)
    assert np.array_equal(fb.load(path).predict(x), model.predict(x))


def test_round_trip_keeps_every_bit_pattern(model, path):
    """Signed zeros, subnormals, infinities and NaN with its payload: a diverged model can be saved and looked at"""
    weight = model.parameters["0.weight"]
    bits = weight.view(f"u{weight.itemsize}")
    bits[:] = np.random.default_rng(0).integers(0, np.iinfo(bits.dtype).max, bits.shape, bits.dtype, endpoint=True)
    bits.flat[:4] = [0, 1, 1 << (8 * weight.itemsize - 1), np.iinfo(bits.dtype).max]
    model.save(path)
    assert np.array_equal(fb.load(path).parameters["0.weight"].view(bits.dtype), bits)


def test_training_goes_on_as_if_never_saved(dtype, path, rng, fingerprint):
    """Dropout included, whose bits depend on the step"""
    x, y = rng.standard_normal((40, 6)), rng.integers(0, 2, 40)

    def train(model):
        model.fit(x, y, loss=fb.CrossEntropyLoss(), optimizer=fb.SGD(lr=0.1), epochs=2, batch_size=16, seed=0, progress=False)

    model = fb.Sequential(*ARCHITECTURES["dropout"](), dtype=dtype, seed=5)
    train(model)
    model.save(path)
    loaded = fb.load(path)
    train(model)
    train(loaded)
    assert fingerprint(loaded.state_dict()) == fingerprint(model.state_dict())


def test_loaded_parameters_are_live_and_its_own(model, path):
    model.save(path)
    loaded, twin = fb.load(path), fb.load(path)
    loaded.parameters["0.weight"][:] = 0
    assert not loaded.predict(np.ones((1, 3))).any() or loaded.parameters["0.bias"].any()
    assert twin.parameters["0.weight"].any() and fb.load(path).parameters["0.weight"].any()


def test_same_model_is_the_same_bytes(model, path):
    seen = set()
    for _ in range(5):
        model.save(path)
        seen.add(path.read_bytes())
    assert len(seen) == 1


def test_loaded_model_is_the_same_bytes_again(model, path):
    model.save(path)
    before = path.read_bytes()
    fb.load(path).save(path)
    assert path.read_bytes() == before


def test_any_safetensors_reader_reads_the_weights(model, path, fingerprint):
    model.save(path)
    assert fingerprint(load_file(path)) == fingerprint(model.state_dict())


@pytest.mark.parametrize("name", ["a.safetensors", "ünï cödé.safetensors", "no-suffix", "x" * 200])
@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_path_may_be_str_or_pathlike(model, tmp_path, name, kind):
    model.save(kind(tmp_path / name))
    assert fb.load(kind(tmp_path / name)).parameters.keys() == model.parameters.keys()
    assert os.listdir(tmp_path) == [name]


# --- what is damaged is refused -------------------------------------------------------------------------------------


@pytest.fixture
def small(path):
    fb.Sequential(fb.Linear(3, 2), seed=1).save(path)
    return path.read_bytes()


def test_every_truncation_is_refused(small, path):
    for length in range(len(small)):
        path.write_bytes(small[:length])
        refused(path)


def test_every_bit_flip_is_refused(small, path):
    for i in range(len(small)):
        for bit in range(8):
            path.write_bytes(small[:i] + bytes([small[i] ^ 1 << bit]) + small[i + 1:])
            refused(path)


@pytest.mark.parametrize("damage", [
    lambda data: data + b"\0",
    lambda data: data + data,
    lambda data: b"\0" + data,
    lambda data: bytes(len(data)),
    lambda data: b"\xff" * len(data),
    lambda data: data[:8] + b" " + data[8:],
    lambda data: data[::-1],
    lambda data: data.replace(b"0.weight", b"9.weight"),
    lambda data: data.replace(b"F32", b"I32"),
    lambda data: b"\x80\x04K\x01.",  # a pickle of 1
    lambda data: b"PK\x03\x04" + data,
    lambda data: b"\x93NUMPY" + data,
])
def test_damage_is_refused(small, path, damage):
    path.write_bytes(damage(small))
    refused(path)


def test_empty_file_is_refused(path):
    path.touch()
    refused(path, "0 bytes")


# --- what is forged is refused ---------------------------------------------------------------------------------------


def test_forge_by_itself_is_accepted(model, path):
    """Otherwise the tests below would pass for the wrong reason"""
    forge(path, model, document=dict)
    fb.load(path)


def test_foreign_safetensors_file_is_refused(path):
    save_file({"0.weight": np.zeros((2, 3), np.float32)}, path)
    refused(path, "metadata", "'fastbp'")
    save_file({"0.weight": np.zeros((2, 3), np.float32)}, path, metadata={"format": "pt"})
    refused(path, "metadata", "'fastbp'")


@pytest.mark.parametrize("version", [0, 2, 99, "1", 1.0, True, None, [1]])
def test_other_format_version_is_refused(model, path, version):
    forge(path, model, document=lambda entry: {**entry, "format": version})
    refused(path, "format 1", repr(version))


def compact(value):
    return json.dumps(value, separators=(",", ":"))


@pytest.mark.parametrize("document", [
    "", "{", "[]", "3", "null", '"x"', "{}", '{"format":1}', '{"format":1,"config":{}}',
    "[" * 100_000, '{"a":' * 50_000,
    lambda entry: {**entry, "extra": 1},
    lambda entry: {**entry, "config": 3},
    lambda entry: {**entry, "config": {}},
    lambda entry: {**entry, "config": None},
    lambda entry: compact(entry).replace('"format":1', '"format":1,"format":1'),
    lambda entry: compact({**entry, "config": {**entry["config"], "x": 7}}),
    lambda entry: compact({**entry, "config": {**entry["config"], "seed": math.nan}}),
    lambda entry: compact({**entry, "config": {**entry["config"], "seed": -math.inf}}),
    lambda entry: compact({**entry, "config": {**entry["config"], "seed": 0.5}}).replace("0.5", "1e999"),
    lambda entry: compact({**entry, "config": {**entry["config"], "seed": 0.5}}).replace("0.5", "9" * 5000),
    lambda entry: compact({**entry, "config": {**entry["config"], "layers": tuple(entry["config"]["layers"][:-1])}}),
], ids=range(22))
def test_malformed_metadata_is_refused(model, path, document):
    forge(path, model, document=document)
    refused(path)


def test_metadata_errors_say_what_they_are(model, path):
    """Each refusal above is of its own defect and not of a broken forgery"""
    for document, words in [
        (lambda entry: compact(entry).replace('"format":1', '"format":1,"format":1'), "twice"),
        (lambda entry: compact({**entry, "config": {**entry["config"], "x": 7}}), "entries that the model does not have"),
        (lambda entry: compact({**entry, "config": {**entry["config"], "seed": math.nan}}), "not finite"),
        (lambda entry: compact({**entry, "config": {**entry["config"], "seed": 0.5}}).replace("0.5", "1e999"), "not finite"),
        (lambda entry: {**entry, "extra": 1}, "'extra'"),
        (lambda entry: {**entry, "config": {}}, "describes no model"),
    ]:
        forge(path, model, document=document)
        refused(path, words)


@pytest.mark.parametrize("change", [
    lambda t: {name: value for name, value in t.items() if name != "2.bias"},
    lambda t: {**t, "3.weight": np.zeros(3)},
    lambda t: {},
    lambda t: {**t, "0.weight": np.ascontiguousarray(t["0.weight"].T)},
    lambda t: {**t, "0.weight": t["0.weight"].reshape(-1)},
    lambda t: {**t, "0.weight": t["0.weight"][:-1]},
    lambda t: {**t, "0.bias": t["0.bias"].reshape(1, 4)},
    lambda t: {**t, "0.bias": t["0.bias"].astype(np.float16)},
    lambda t: {**t, "0.bias": t["0.bias"].astype(np.float32 if t["0.bias"].dtype == np.float64 else np.float64)},
    lambda t: {**t, "0.bias": t["0.bias"].view(f"i{t['0.bias'].itemsize}")},
    lambda t: {("1" + name[1:]): value for name, value in t.items()},
], ids=range(11))
def test_wrong_tensors_are_refused(model, path, change):
    forge(path, model, tensors=change(model.state_dict()))
    refused(path)


def altered(value, find, replace):
    """A config with every dict entry that `find` accepts replaced"""
    if isinstance(value, dict):
        return {key: replace(item) if find(key, item) else altered(item, find, replace) for key, item in value.items()}
    return [altered(item, find, replace) for item in value] if isinstance(value, list) else value


def test_config_of_a_large_model_in_a_small_file_allocates_nothing(model, path):
    config = altered(model.config(), is_size, lambda _: 1024)  # more than a million weights
    forge(path, model, config=config)
    tracemalloc.start()
    try:
        refused(path, "1050624", "config")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def is_size(key, value):
    return isinstance(value, int) and not isinstance(value, bool) and value in (3, 4)  # no layer has another


@pytest.mark.parametrize("size", [0, -4, 5, 10**6, 2**31, 2**62, 2**64, 10**30, 4.0, "4", None, [4], True])
def test_config_of_other_sizes_is_refused(model, path, size):
    """Without an allocation of what a size claims: a MemoryError would not be caught here"""
    config = altered(model.config(), is_size, lambda _: size)
    assert config != model.config()
    forge(path, model, config=config)
    refused(path)


@pytest.mark.parametrize("kind", ["", "Nonsense", "os.system", "fastbp.layers.Linear", "__import__", "builtins.eval", 3, None, ["Linear"]])
def test_config_of_unknown_kinds_is_refused(model, path, kind):
    config = altered(model.config(), lambda key, value: value == "Linear", lambda _: kind)
    assert config != model.config()
    forge(path, model, config=config)
    refused(path)


@pytest.mark.parametrize("key", ["seed", "steps"])
@pytest.mark.parametrize("value", [-1, 1.5, "0", None, 2**64, 10**30])
def test_config_of_impossible_counters_is_refused(model, path, key, value):
    """Here, and not by the first forward"""
    forge(path, model, config={**model.config(), key: value})
    refused(path)


def test_config_that_repeats_a_layer_is_refused(model, path):
    """A small file cannot ask for a large model"""
    layer = fb.Sequential(fb.Linear(3, 3)).config()
    many = altered(layer, lambda key, value: isinstance(value, list), lambda layers: layers * 10_000)
    assert many != layer
    forge(path, model, config=many)
    refused(path)


# --- the system refuses ----------------------------------------------------------------------------------------------


def test_missing_file_is_file_not_found(tmp_path, model):
    with pytest.raises(FileNotFoundError):
        fb.load(tmp_path / "absent")
    with pytest.raises(FileNotFoundError):
        model.save(tmp_path / "absent" / "m.safetensors")


def test_directory_is_refused(tmp_path, model):
    for action in (fb.load, model.save):
        with pytest.raises(IsADirectoryError):
            action(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("given, error, words", [
    (3, TypeError, ["path", "3", "str"]), (None, TypeError, ["path", "None", "str"]), (b"x", TypeError, ["path", "bytes", "str"]),
    ("", ValueError, ["path", "''"]), ("a\0b", ValueError, ["path", "a\\x00b"]), (os.devnull, ValueError, ["path", os.devnull, "regular"]),
])
def test_impossible_path_is_refused(model, given, error, words):
    for action in (fb.load, model.save):
        with pytest.raises(error) as caught:
            action(given)
        assert all(word in str(caught.value) for word in words), str(caught.value)


def test_pipe_is_refused_without_waiting(tmp_path, model):
    os.mkfifo(tmp_path / "pipe")
    for action in (fb.load, model.save):
        with pytest.raises(ValueError, match="regular"):
            action(tmp_path / "pipe")
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)


# --- writing is atomic and durable -----------------------------------------------------------------------------------


class System:
    """os with a record of the calls that matter, one of which may fail"""

    def __init__(self, monkeypatch, fail=None, error=OSError(errno.ENOSPC, "no space left on device"), most=1 << 30):
        self.calls, self.names = [], {}
        for name in ("open", "write", "fsync", "close", "replace", "unlink"):
            monkeypatch.setattr(io.os, name, self.recorded(name, getattr(os, name), fail, error, most))

    def recorded(self, name, real, fail, error, most):
        def call(*arguments, **options):
            what = self.names.get(arguments[0], "?") if isinstance(arguments[0], int) else self.kind(arguments[0])
            self.calls.append(f"{name} {what}")
            if self.calls[-1] == fail:
                raise error
            if name == "write":
                return real(arguments[0], arguments[1][:most])
            result = real(*arguments, **options)
            if name == "open":
                self.names[result] = what
            return result
        return call

    @staticmethod
    def kind(path):
        return "directory" if os.path.isdir(path) else "temporary" if str(path).endswith(".tmp") else "file"


def test_save_flushes_before_and_after_the_rename(model, path, monkeypatch):
    system = System(monkeypatch)
    model.save(path)
    assert system.calls == ["open temporary", "write temporary", "fsync temporary", "close temporary", "replace temporary",
                            "open directory", "fsync directory", "close directory"]


def test_save_continues_short_writes(model, path, monkeypatch):
    model.save(path)
    whole = path.read_bytes()
    system = System(monkeypatch, most=100)
    model.save(path)
    assert path.read_bytes() == whole
    assert system.calls.count("write temporary") == math.ceil(len(whole) / 100)


@pytest.mark.parametrize("call", ["open temporary", "write temporary", "fsync temporary", "close temporary", "replace temporary"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), OSError(errno.EIO, "broken"), KeyboardInterrupt()], ids=repr)
def test_save_that_fails_leaves_the_old_file_alone(model, path, monkeypatch, call, error, rng):
    model.save(path)
    before = path.read_bytes()
    model.parameters["0.weight"][:] += 1
    with monkeypatch.context() as patch:
        System(patch, fail=call, error=error)
        with pytest.raises(type(error)):
            model.save(path)
    assert os.listdir(path.parent) == [path.name]
    assert path.read_bytes() == before
    model.save(path)
    assert path.read_bytes() != before


def test_save_that_fails_leaves_no_new_file(model, path, monkeypatch):
    System(monkeypatch, fail="write temporary")
    with pytest.raises(OSError, match="no space"):
        model.save(path)
    assert os.listdir(path.parent) == []


def test_save_writes_through_nothing_that_lies_in_its_way(model, path, monkeypatch):
    """A temporary name that somebody guessed and linked elsewhere: an error, and nothing written there or removed"""
    victim, trap = path.parent / "victim", path.parent / f".fastbp-{bytes(8).hex()}.tmp"
    victim.write_bytes(b"precious")
    trap.symlink_to(victim)
    monkeypatch.setattr(io.os, "urandom", bytes)
    with pytest.raises(FileExistsError):
        model.save(path)
    assert victim.read_bytes() == b"precious" and trap.is_symlink() and not path.exists()


def test_save_killed_at_any_call_leaves_the_old_or_the_new_file(tmp_path, fresh_process):
    """SIGKILL before each of the eight calls of a save, in a child each: what is there afterwards loads"""
    out = fresh_process(f"""
import os, signal
os.chdir({str(tmp_path)!r})
import fastbp as fb
model = fb.Sequential(fb.Linear(3, 2), seed=1)
seen = []
for deadly in range(8):
    model.parameters["0.weight"][:] = 1
    model.save("m")
    child = os.fork()
    if not child:
        from fastbp import io
        model.parameters["0.weight"][:] = 2
        count = 0
        def armed(real):
            def call(*a, **k):
                global count
                count += 1
                if count > deadly:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*a, **k)
            return call
        for name in ("open", "write", "fsync", "close", "replace"):
            setattr(os, name, armed(getattr(os, name)))
        model.save("m")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    seen.append(int(fb.load("m").parameters["0.weight"][0, 0]))
print(seen)
""")
    assert out == "[1, 1, 1, 1, 1, 2, 2, 2]"


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_save_follows_the_umask(model, path, umask, mode):
    old = os.umask(umask)
    try:
        model.save(path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_save_follows_a_link(model, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "target")
    model.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "deep" / "target").is_file()
    assert fb.load(tmp_path / "link").parameters.keys() == model.parameters.keys()


def test_save_leaves_a_memory_mapped_file_alone(model, path):
    """Writing in place would change, or shorten to a crash, what another process has mapped"""
    model.save(path)
    mapped = np.memmap(path, mode="r")
    before = bytes(mapped)
    model.parameters["0.weight"][:] += 1
    model.save(path)
    assert bytes(mapped) == before != path.read_bytes()


# --- loading does nothing else ---------------------------------------------------------------------------------------


def test_load_runs_no_code_and_opens_nothing_else(model, path, fresh_process):
    model.save(path)
    out = fresh_process(f"""
import sys
import fastbp as fb
path = {str(path)!r}
fb.load(path)  # imports safetensors
seen, on = set(), False
def hook(event, arguments):
    if on and (event.split(".")[0] in ("pickle", "import", "exec", "compile", "marshal", "socket", "subprocess", "ctypes", "shutil")
               or event in ("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.remove", "os.rename", "code.__new__")
               or event == "open" and arguments[0] != path):
        seen.add((event, str(arguments[:1])))
sys.addaudithook(hook)
on = True
fb.load(path)
on = False
print(seen or "nothing")
""")
    assert out == "nothing"


def test_load_leaves_what_is_there_alone(model, path, fingerprint):
    """A failing load changes nothing in the process' other models, and nothing in the file"""
    model.save(path)
    data, before = path.read_bytes(), fingerprint(model.state_dict())
    path.write_bytes(data[:-1])
    refused(path)
    assert path.read_bytes() == data[:-1] and fingerprint(model.state_dict()) == before
