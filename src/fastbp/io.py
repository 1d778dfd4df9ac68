"""Model files: `save(model, path)` and `load(path)`.

A file is one safetensors file, so any tool that reads the format can read the weights. Its tensors are the model's
`state_dict`; its metadata has one entry, "fastbp" (one, because safetensors writes several in random order, and the same
model should give the same bytes), which holds JSON::

    {"sha256": 64 hexadecimal digits, "format": 1, "config": model.config()}

sha256
    of the whole file as it is with "0" in place of these 64 digits, so no changed bit goes unnoticed. It guards against
    damage, not against an attacker, who can compute it: every length is checked before it is believed.
format
    the version of this layout. Another version is an error; there is no laxer way to read a file.
config
    what the layers are: names from a fixed registry, numbers and strings. Never code, a class path or another file.

Initialisers (`init=`) are not in the file: their result, the weights, is.

Writing is atomic and durable: the bytes go to a new file in the same directory, which is flushed to the disk and renamed
over `path`, and then the directory is flushed. A crash at any moment leaves the old file or the new one; an error leaves
the old one and no temporary file. A file that is memory-mapped elsewhere keeps its content there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import arrays, graph

__all__ = ["load", "save"]

FORMAT = 1
_ENTRY = "fastbp"
_DIGITS = 64
_NO_DIGEST = "0" * _DIGITS
_LENGTH = 8  # a safetensors file starts with the length of its header, 8 bytes, little-endian
_MAX_HEADER = 100_000_000  # safetensors' own limit

_Path = str | os.PathLike[str]


class _Malformed(Exception):
    """What is wrong with a file, in words that follow "expected a fastbp model file: "."""


# --- save -----------------------------------------------------------------------------------------------------------


def save(model: Any, path: _Path) -> None:
    """Write `model` to `path`, replacing what is there (see above). The mode follows the umask, a link is followed.

    Raises TypeError or ValueError for a path that cannot name a regular file, and OSError (FileNotFoundError,
    PermissionError, no space left, ...) when the system refuses; then `path` is as it was.
    """
    _write(_regular("path", path), _serialise(model.state_dict(), model.config()))


def _serialise(state: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> bytes:
    """The bytes of a file: the same for the same model."""
    from safetensors.numpy import save as serialise

    document = {"sha256": _NO_DIGEST, "format": FORMAT, "config": config}
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    data = serialise({name: np.asarray(value, order="C") for name, value in state.items()}, metadata={_ENTRY: text})
    at = _digest_position(data)
    return b"".join((data[:at], _digest(data, at).encode(), data[at + _DIGITS:]))


def _write(path: str, data: bytes) -> None:
    """Replace the file at `path` by one with these bytes, atomically and durably."""
    directory = os.path.dirname(path)
    temporary = os.path.join(directory, f".fastbp-{os.urandom(8).hex()}.tmp")
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(file, rest):]
            os.fsync(file)
        finally:
            os.close(file)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if os.name == "posix":  # elsewhere a directory cannot be opened
        _flush_directory(directory)


def _flush_directory(directory: str) -> None:
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


# --- load -----------------------------------------------------------------------------------------------------------


def load(path: _Path) -> Any:
    """Read the model that `save` wrote to `path`: the same architecture, dtype and bits.

    Raises ValueError, naming the file and what was expected, for anything that is not exactly such a file: truncated,
    corrupted, of another version, with a tensor missing, left over or of another shape or dtype. OSError passes. The
    memory taken is a small multiple of the file's size, whatever the file says.
    """
    path = _regular("path", path)
    with open(path, "rb") as file:
        data = file.read()
    try:
        return _deserialise(data)
    except _Malformed as error:
        raise ValueError(f"path: expected a fastbp model file, got {path!r}: {error}") from error


def _deserialise(data: bytes) -> Any:
    document = _document(data)
    tensors = _tensors(data)
    _check_sizes(document["config"], sum(tensor.size for tensor in tensors.values()))
    try:
        model = graph.model_from_config(document["config"])
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise _Malformed(f"its config describes no model ({type(error).__name__}: {error})") from error
    if not _agrees(document["config"], model.config()):
        raise _Malformed("expected a config of which every entry counts, got entries that the model does not have")
    _check_tensors(tensors, model.tensors)
    model.load_state_dict(tensors)
    return model


def _document(data: bytes) -> dict[str, Any]:
    """The metadata of an undamaged file of this format."""
    if len(data) < _LENGTH:
        raise _Malformed(f"it has {len(data)} bytes, expected a header")
    length = int.from_bytes(data[:_LENGTH], "little")
    if not 0 < length <= min(len(data) - _LENGTH, _MAX_HEADER):
        raise _Malformed(f"it has {len(data)} bytes, expected a header of {length} in them and at most {_MAX_HEADER}")
    header = _json(data[_LENGTH:_LENGTH + length], "header")
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or list(metadata) != [_ENTRY] or not isinstance(metadata[_ENTRY], str):
        raise _Malformed(f"expected metadata with the one entry {_ENTRY!r}")
    document = _json(metadata[_ENTRY], "metadata")
    if document.get("format") != FORMAT or isinstance(document["format"], bool | float):
        raise _Malformed(f"expected format {FORMAT}, got {_brief(document.get('format'))}")
    if document.keys() != {"sha256", "format", "config"} or not isinstance(document["config"], dict):
        raise _Malformed(f"expected metadata with 'sha256', 'format' and 'config', got {_brief(list(document))}")
    at = _digest_position(data)
    digest = _digest(data, at)
    if document["sha256"] != digest or data[at:at + _DIGITS] != digest.encode():
        raise _Malformed(f"it is corrupted: expected the checksum {digest}, got {_brief(document['sha256'])}")
    return document


def _json(text: str | bytes, what: str) -> dict[str, Any]:
    """A JSON object of finite numbers without duplicate names."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a name occurs twice")
        return result

    def finite(number: str) -> float:
        value = float(number)
        if not math.isfinite(value):
            raise ValueError(f"{number} is not finite")
        return value

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_float=finite, parse_constant=finite)
    except (ValueError, RecursionError) as error:  # includes JSONDecodeError and UnicodeDecodeError
        raise _Malformed(f"expected a {what} in JSON ({type(error).__name__}: {error})") from error
    if not isinstance(value, dict):
        raise _Malformed(f"expected a {what} that is a JSON object, got {_brief(value)}")
    return value


def _tensors(data: bytes) -> dict[str, np.ndarray]:
    """The tensors, after safetensors' checks (offsets in order, no gaps, sizes that match shapes)."""
    from safetensors import SafetensorError
    from safetensors.numpy import load as deserialise

    try:
        return deserialise(data)
    except (SafetensorError, KeyError, ValueError, TypeError, OverflowError) as error:  # KeyError: a dtype NumPy lacks
        raise _Malformed(f"expected the safetensors format ({type(error).__name__}: {error})") from error


def _check_sizes(config: Any, elements: int) -> None:
    """Refuse a config whose layers have more weights than the file holds, before any is allocated.

    A Linear or an Embedding has the product of its two sizes, a norm a few times its features, a parameter its shape's; none when the layer is
    the "same_as" another.
    """
    pending, declared = [config], 0
    while pending:
        value = pending.pop()
        if isinstance(value, dict) and value.get("same_as") is None:
            for names in (("in_features", "out_features"), ("num_embeddings", "embedding_dim"), ("normalized_shape",), ("num_features",)):
                sizes = [value.get(name) for name in names]
                if all(isinstance(size, int) for size in sizes) and value.get("elementwise_affine") is not False:
                    declared += abs(math.prod(sizes))
            shape = value.get("shape")
            if isinstance(shape, list) and all(isinstance(size, int) for size in shape):
                declared += abs(math.prod(shape))
        if isinstance(value, dict | list):
            pending.extend(value.values() if isinstance(value, dict) else value)
    if declared > elements:
        raise _Malformed(f"expected the {declared} weights its config declares, got {elements} numbers")


def _agrees(given: Any, actual: Any) -> bool:
    """Whether everything that a file's config says is what the model made of it; a later model may have more to say."""
    if isinstance(given, dict) and isinstance(actual, dict):
        return all(name in actual and _agrees(value, actual[name]) for name, value in given.items())
    if isinstance(given, list) and isinstance(actual, list):
        return len(given) == len(actual) and all(map(_agrees, given, actual))
    return type(given) is type(actual) and given == actual


def _check_tensors(tensors: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """The file must hold every tensor in its shape and dtype, and nothing else."""
    missing, extra = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    if missing or extra:
        raise _Malformed(f"expected the tensors of its config, missing {sorted(missing)}, not expected {sorted(extra)}")
    for name, view in expected.items():
        tensor = tensors[name]
        if (tensor.shape, tensor.dtype) != (view.shape, view.dtype):
            raise _Malformed(f"expected {name!r} of shape {view.shape} and dtype {view.dtype},"
                             f" got {tensor.shape} and {tensor.dtype}")


# --- both -----------------------------------------------------------------------------------------------------------


def _digest_position(data: bytes) -> int:
    """Where the 64 digits of the checksum are: after the first `{"sha256":"`, with its quotes escaped, of the header."""
    start = rb"{\"sha256\":\""
    at = data.find(start)
    if at < 0:
        raise _Malformed("expected a checksum in its metadata")
    return at + len(start)


def _digest(data: bytes, at: int) -> str:
    """SHA-256 of `data` with "0" in place of the 64 digits at `at`."""
    view = memoryview(data)
    sha = hashlib.sha256(view[:at])
    sha.update(_NO_DIGEST.encode())
    sha.update(view[at + _DIGITS:])
    return sha.hexdigest()


def _regular(name: str, path: _Path) -> str:
    """`path` as an absolute string without links, which is a regular file or nothing yet."""
    given = path
    if isinstance(path, os.PathLike):
        path = os.fspath(path)
    if not isinstance(path, str):
        raise TypeError(f"{name} must be a str or an os.PathLike of str, got {arrays.describe(given)}")
    if not path or "\0" in path:
        raise ValueError(f"{name} must name a file, got {given!r}")
    path = os.path.realpath(path)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return path
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # a directory gets the system's own IsADirectoryError
        raise ValueError(f"{name} must name a regular file, got {given!r}")
    return path


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
