"""The documentation works: its examples and README.md's run, every public name has its entry in the reference, and every file and C function that
it points at exists.
"""
import importlib
import inspect
import re
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import fastbp as fb
from fastbp import callbacks, datasets, init, kernels, schedules

ROOT = Path(__file__).parents[1]
PAGES = sorted(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts)
REFERENCE = "\n".join(page.read_text() for page in sorted((ROOT / "docs" / "reference").glob("*.rst")))


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_examples_run(page, tmp_path, monkeypatch):
    """The blocks of Python of a page, in order, in a namespace and a folder of their own"""
    sybil = pytest.importorskip("sybil")
    from sybil.parsers.myst import PythonCodeBlockParser, SkipParser

    if page.stem in ("README", "scikit-learn"):
        pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    threads = fb.get_num_threads()
    document = sybil.Sybil(parsers=[PythonCodeBlockParser(doctest_optionflags=ELLIPSIS | NORMALIZE_WHITESPACE), SkipParser()]).parse(page)
    document.namespace["no_torch"] = not find_spec("torch")
    try:
        with np.printoptions():
            for example in document.examples():
                example.evaluate()
    finally:
        fb.set_num_threads(threads)


def documented():
    """Full names of what autodoc is told to describe"""
    names = set(re.findall(r"^\.\. auto(?:class|function):: (\S+)", REFERENCE, re.MULTILINE))
    for module, options in re.findall(r"^\.\. automodule:: (\S+)\n((?:   .+\n)*)", REFERENCE, re.MULTILINE):
        if match := re.search(r":members:(.*)", options):
            names |= {f"{module}.{name}" for name in re.findall(r"\w+", match[1]) or functions(importlib.import_module(module))}
    return names


def functions(module):
    """Public functions and classes that are defined in a module"""
    return [name for name, thing in vars(module).items()
            if not name.startswith("_") and (inspect.isfunction(thing) or inspect.isclass(thing)) and thing.__module__ == module.__name__]


def public():
    yield from (f"fastbp.{name}" for name in fb.__all__ if not inspect.ismodule(getattr(fb, name)))
    yield from (f"fastbp.{name}" for name in callbacks.__all__)
    if find_spec("sklearn"):
        yield from (f"fastbp.sklearn.{name}" for name in importlib.import_module("fastbp.sklearn").__all__)
    yield from (f"fastbp.schedules.{name}" for name in schedules.__all__ if inspect.isclass(getattr(schedules, name)))
    yield from (f"fastbp.{module.__name__.split('.')[1]}.{name}" for module in (kernels, datasets, init) for name in functions(module))


@pytest.mark.parametrize("name", sorted(set(public())))
def test_public_name_is_in_the_reference(name):
    assert name in documented()


@pytest.mark.parametrize("name", sorted(set(public())))
def test_public_name_has_a_docstring(name):
    module, _, attribute = name.rpartition(".")
    thing = getattr(importlib.import_module(module), attribute)
    assert inspect.isclass(thing) and "__doc__" in vars(thing) and thing.__doc__ or inspect.isfunction(thing) and thing.__doc__


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_points_at_what_exists(page):
    text = page.read_text()
    for path in re.findall(r"`((?:src|csrc|tests|bench|docs)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path
    sources = "\n".join(path.read_text() for path in (ROOT / "csrc").rglob("*.[ch]"))
    for function in re.findall(r"\bfbp_\w+", text):
        assert re.search(rf"\b{function}\b", sources), function
