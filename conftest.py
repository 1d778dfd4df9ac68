"""The examples of README.md and docs/ are tests: their blocks of Python run in order, each page in a namespace and a folder of its own."""
import os
import tempfile
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE
from importlib.util import find_spec

import numpy as np
from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser, SkipParser

import fastbp as fb


def enter(namespace):
    folder = tempfile.TemporaryDirectory()
    namespace["_outside"] = folder, os.getcwd(), fb.get_num_threads(), np.get_printoptions()
    namespace["no_torch"] = not find_spec("torch")
    os.chdir(folder.name)


def leave(namespace):
    folder, directory, threads, options = namespace["_outside"]
    os.chdir(directory)
    fb.set_num_threads(threads)
    np.set_printoptions(**options)
    folder.cleanup()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(doctest_optionflags=ELLIPSIS | NORMALIZE_WHITESPACE), SkipParser()],
    patterns=["*.md"], setup=enter, teardown=leave,
).pytest()
