"""The arrows of DESIGN.md, read off the sources: who may import whom, where threads and vectors may be named, how it may be compiled."""
import ast
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / "src" / "fastbp"
C = ROOT / "csrc"

# --- Python: data flows one way --------------------------------------------------------------------------------------
#
#     layers  ->  symbols;   losses, optim, symbols  ->  graph  ->  compiler  ->  _core
#
# A module may import what is to its right, never what is to its left: the compiler knows no layer by name, the graph no loss and
# no optimizer. `training` is where all of them meet, and only the package's surface is above it.

ALLOWED = {
    "_core": set(),  # Cython: sees C and nothing of Python's side
    "arrays": {"_core"},
    "runtime": {"_core", "arrays"},
    "kernels": {"_core", "arrays", "losses", "optim"},  # a surface of its own: nobody imports it
    "init": set(),
    "schedules": {"arrays"},
    "callbacks": {"arrays"},
    "datasets": set(),
    "compiler": {"_core", "arrays"},
    "pace": set(),
    "workspace": {"_core", "arrays", "pace"},
    "symbols": {"arrays", "init"},
    "graph": {"_core", "arrays", "compiler", "runtime", "symbols", "workspace"},
    "layers": {"arrays", "init", "symbols"},
    "losses": {"arrays", "_core"},
    "optim": {"arrays", "_core", "schedules"},
    "trace": {"arrays", "symbols", "training"},
    "drawing": {"arrays", "trace"},
    "training": {"_core", "arrays", "compiler", "graph", "layers", "losses", "optim", "runtime", "callbacks", "workspace"},
    "gradcheck": {"arrays"},
    "io": {"arrays", "graph"},
    "_numpy_trainer": set(),
    "sklearn": {"_core", "arrays", "graph", "layers", "losses", "runtime", "training"},
    "__main__": {"__init__", "_numpy_trainer", "datasets", "runtime"},
    "__init__": None,  # the surface: anything
}
# Inside functions only: a method of Model may hand over to the module that does the work.
LATE = {"graph": {"training", "io", "trace", "drawing"}}


def modules():
    return sorted(path.stem for path in PYTHON.glob("*.py"))


def imports(module):
    """({modules of fastbp imported at the top}, {inside functions}); what is under TYPE_CHECKING is for readers, not for the interpreter"""
    top, late = set(), set()

    def visit(node, into):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            into = late
        if isinstance(node, ast.Import):
            into |= {"__init__" if alias.name == "fastbp" else alias.name.split(".")[1]
                     for alias in node.names if alias.name.split(".")[0] == "fastbp"}
        if isinstance(node, ast.ImportFrom):
            name = node.module or ""
            if node.level == 0 and name.split(".")[0] == "fastbp":
                node.level, name = 1, name.removeprefix("fastbp").removeprefix(".")
            if node.level:
                into |= {name.split(".")[0]} if name else {
                    alias.name if (PYTHON / f"{alias.name}.py").exists() or alias.name == "_core" else "__init__" for alias in node.names}
        for child in ast.iter_child_nodes(node):
            visit(child, into)

    visit(ast.parse((PYTHON / f"{module}.py").read_text()), top)
    return top - {module}, late - {module}


@pytest.mark.parametrize("module", modules())
def test_python_imports_follow_the_arrows(module):
    assert module in ALLOWED, f"declare what {module} may import"
    if ALLOWED[module] is not None:
        top, late = imports(module)
        assert top <= ALLOWED[module], f"{module} -> {sorted(top - ALLOWED[module])}"
        assert late <= ALLOWED[module] | LATE.get(module, set()), f"{module} -> {sorted(late)} (in a function)"


def test_python_arrows_have_no_cycle():
    """Of the table itself, then of the sources"""
    everything = {name: set(ALLOWED) - {name} if allowed is None else allowed for name, allowed in ALLOWED.items()}
    del everything["__init__"]
    tuple(graphlib.TopologicalSorter({name: allowed - {"__init__"} for name, allowed in everything.items()}).static_order())
    tuple(graphlib.TopologicalSorter({module: imports(module)[0] for module in modules() if module != "__init__"}).static_order())


def test_python_only_the_extension_sees_c():
    found = {path.name for path in PYTHON.rglob("*.py") if re.search(r"\b(ctypes|cffi|cython)\b", path.read_text())} - {"arrays.py", "kernels.py"}
    assert not found  # array.ctypes.data, the address of an array, is all that those two may use
    assert sorted(path.name for path in PYTHON.rglob("*.p[yx][xd]")) == ["_core.pxd", "_core.pyx"]
    for name in ("arrays.py", "kernels.py"):
        assert not re.search(r"import ctypes|cffi|\bcython\b", (PYTHON / name).read_text())


@pytest.mark.parametrize("module", modules())
def test_python_runs_no_data_as_code(module):
    tree = ast.parse((PYTHON / f"{module}.py").read_text())
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) else []
        assert not {"pickle", "marshal", "shelve", "dill", "joblib", "importlib"} & set(names), ast.unparse(node)
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in ("eval", "exec", "compile", "__import__"), ast.unparse(node)
            assert not any(keyword.arg == "allow_pickle" for keyword in node.keywords), ast.unparse(node)


def test_import_loads_nothing_heavy(fresh_process):
    """What only some functions need comes with their first call"""
    out = fresh_process("""
import sys, numpy
before = set(sys.modules)
import fastbp
heavy = {"safetensors", "tqdm", "matplotlib", "scipy", "sklearn", "torch", "pandas", "threadpoolctl", "multiprocessing", "asyncio", "unittest"}
print(sorted({name.split(".")[0] for name in set(sys.modules) - before} & heavy))
""")
    assert out == "[]"


def test_reference_stands_alone():
    """The executable specification imports nothing from what it specifies"""
    for name in ("reference.py", "tolerance.py"):
        assert not re.search(r"^\s*(import|from)\s+fastbp", (ROOT / "tests" / name).read_text(), re.MULTILINE)


# --- C: drivers know threads, kernels know vectors -------------------------------------------------------------------


def c_files():
    return sorted(str(path.relative_to(C)) for path in C.rglob("*") if path.suffix in (".c", ".h"))


def code(name):
    """A C file without its comments and strings"""
    return re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', " ", (C / name).read_text(), flags=re.DOTALL)


def includes(name):
    return set(re.findall(r'#\s*include\s*["<]([^">]+)[">]', re.sub(r"/\*.*?\*/", " ", (C / name).read_text(), flags=re.DOTALL)))


def test_c_files_are_found():
    assert {"parallel.c", "cpu.c", "kernels/simd.h", "kernels/table.c"} <= set(c_files())


@pytest.mark.parametrize("name", c_files())
def test_c_openmp_is_named_in_parallel_only(name):
    if name not in ("parallel.c", "parallel.h"):
        assert "omp.h" not in includes(name)
        assert not re.findall(r"#\s*pragma\s+omp\b|_Pragma\s*\(\s*omp|\bomp_\w+|\b_OPENMP\b|\bpthread_\w+|\bthrd_\w+", code(name))


INTRINSIC = r"\b_mm\w*_\w+|\b__m(?:64|128|256|512)\w*|\b__builtin_(?:ia32|neon|aarch64)_\w+|\bv(?:ld|st)\d\w*_[fsu]\d+|\b(?:float|u?int)\d+x\d+_t\b|\bvector_size\b|\b__get_cpuid\w*|\b_xgetbv\b"
VECTOR_HEADERS = r"\w*mmintrin\.h|immintrin\.h|x86intrin\.h|arm_neon\.h|arm_sve\.h|cpuid\.h"
ELSEWHERE = {
    "cpu.c": r"__get_cpuid\w*|_xgetbv|__builtin_ia32_(?:stmxcsr|ldmxcsr)|_mm_[gs]etcsr|cpuid\.h|\w*mmintrin\.h",  # what the processor is, and its float mode
    "parallel.c": r"__builtin_ia32_pause",  # a hint to a spinning core, no arithmetic
}


@pytest.mark.parametrize("name", [name for name in c_files() if name != "kernels/simd.h"])
def test_c_intrinsics_and_vector_types_are_made_in_simd_h_only(name):
    found = set(re.findall(INTRINSIC, code(name))) | {header for header in includes(name) if re.fullmatch(VECTOR_HEADERS, header)}
    assert not {word for word in found if not re.fullmatch(ELSEWHERE.get(name, r"$."), word)}


@pytest.mark.parametrize("name", [name for name in c_files() if not name.startswith("kernels/")])
def test_c_drivers_know_nothing_of_vectors(name):
    assert not {header for header in includes(name) if header.endswith("simd.h") or header.endswith(".inc.c")}
    assert not re.findall(r"\bvreal\b|\bVBYTES\b", code(name))


@pytest.mark.parametrize("name", [name for name in c_files() if name.startswith("kernels/")])
def test_c_kernels_know_nothing_of_threads(name):
    assert not {header for header in includes(name) if re.search(r"parallel|program|dispatch|pthread|threads\.h|Python\.h", header)}


@pytest.mark.parametrize("name", c_files())
def test_c_prints_nothing_and_never_ends_the_process(name):
    assert not re.findall(r"\b(?:printf|fprintf|puts|perror|abort|exit|_exit|system|setenv|putenv)\s*\(", code(name))


# --- builds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [ROOT / "pyproject.toml", *sorted(ROOT.glob("CMakeLists.txt")), *sorted(C.rglob("CMakeLists.txt")), *sorted(C.rglob("*.cmake"))],
                         ids=lambda path: str(path.relative_to(ROOT)))
def test_build_keeps_ieee_arithmetic_and_other_machines(path):
    text = re.sub(r"#.*", "", path.read_text())
    assert not re.findall(r"-ffast-math|-Ofast|-march=native|-mtune=native|-mcpu=native|-f(?:unsafe-math-optimizations|finite-math-only|associative-math"
                          r"|reciprocal-math|cx-limited-range|no-signed-zeros|no-rounding-math)|-ffp-contract=(?:fast|on)\b", text)


def test_build_writes_fused_multiply_adds_out():
    assert "-ffp-contract=off" in (ROOT / "CMakeLists.txt").read_text()
