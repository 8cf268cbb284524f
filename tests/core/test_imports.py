"""Import hygiene, asked in a fresh interpreter: nothing is imported before it is needed."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FRAMEWORKS = (
    "torch",
    "tensorflow",
    "keras",
    "jax",
    "flax",
    "equinox",
    "autograd",
    "ray",
    "seldonian",
    "scipy",
)
# No backend: what those have in common that Keras runs on.
SHARED = "gradbridge_keras"
# What users, authors of backends and core itself hold, from the bottom up: nothing imports what comes after it.
ORDER = (
    "errors",
    "layout",
    "traits",
    "borders",
    "call_spec",
    "protocol",
    "program",
    "model",
    "framework",
    "functions",
    "execution",
    "extend",
    "registry",
    "bridge",
    "primitive",
    "cli",
)
HOUSES = ("core", "backends", "plugins")
# What each package of `backends` may import anywhere, beside the standard library and what core requires.
OWN = {
    "gradbridge_autograd": {"autograd"},
    "gradbridge_jax": {"jax", "flax", "equinox"},
    "gradbridge_keras": {"keras"},
    "gradbridge_numpy": {"numdifftools"},
    "gradbridge_tensorflow": {"tensorflow", "keras"},
    "gradbridge_torch": {"torch"},
}
REQUIRED = {"numpy", "optree", "gradbridge"}


def modules_after(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint('\\n'.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in run.stdout.split()}


def imports_of(path: pathlib.Path) -> set[str]:
    """Modules that a file imports when it is imported itself, top-level statements only."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_importing_gradbridge_imports_no_framework():
    assert not modules_after("import gradbridge") & set(FRAMEWORKS)


def test_listing_the_backends_imports_no_framework():
    assert not modules_after("import gradbridge; gradbridge.backends()") & set(FRAMEWORKS)


def test_a_plain_primitive_loads_its_host_and_no_other_framework():
    code = "import gradbridge as gb\nq = gb.primitive(lambda x: x)\nq(2.0)"
    assert modules_after(code) & set(FRAMEWORKS) <= {"autograd", "scipy"}  # autograd looks for scipy itself


def test_bridging_a_torch_model_loads_torch_alone():
    pytest.importorskip("torch")
    code = "import torch, gradbridge as gb\ngb.bridge(torch.nn.Linear(2, 1))"
    loaded = modules_after(code) & {"tensorflow", "jax", "keras", "flax", "seldonian"}
    assert not loaded


def test_loading_the_tensorflow_backend_leaves_its_threads_and_devices_to_be_set():
    pytest.importorskip("tensorflow")
    code = (
        "import gradbridge_tensorflow.guest, tensorflow as tf\n"
        "tf.config.threading.set_intra_op_parallelism_threads(1)\n"
        "tf.config.set_logical_device_configuration(\n"
        "    tf.config.list_physical_devices('CPU')[0], [tf.config.LogicalDeviceConfiguration()] * 2)\n"
        "assert len(tf.config.list_logical_devices('CPU')) == 2"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("path", sorted(ROOT.glob("core/**/*.py")), ids=lambda p: p.stem)
def test_core_knows_no_framework(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            assert name.split(".")[0] not in FRAMEWORKS, f"{path.name} imports {name}"
            assert not name.startswith("gradbridge_"), f"{path.name} imports {name}"


def modules_of_the_house() -> dict[str, pathlib.Path]:
    """{dotted name: file} of all of our own."""
    modules = {}
    for house in HOUSES:
        for path in sorted((ROOT / house).rglob("*.py")):
            parts = path.relative_to(ROOT / house).with_suffix("").parts
            modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


MODULES = modules_of_the_house()


def all_imports_of(path: pathlib.Path) -> set[str]:
    """Modules of ours that a file names anywhere: late, and for the type checker, too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            # `from package import module` is of the module; the package itself is meant where a name is not one.
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= submodules | ({node.module} if names - submodules else set())
    return found & MODULES.keys()


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one node, or with an edge to itself."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen, stack = set(), list(graph[start])
        while stack:
            node = stack.pop()
            if node not in seen:
                seen.add(node)
                stack += graph[node]
        reach[start] = seen
    components = {tuple(sorted(b for b in reach[a] if a in reach[b])) for a in graph if a in reach[a]}
    return [list(component) for component in sorted(components)]


def test_no_module_imports_itself_by_way_of_others():
    found = cycles({name: all_imports_of(path) for name, path in MODULES.items()})
    assert not found, "\n".join(" <-> ".join(cycle) for cycle in found)


def test_cycles_are_seen():
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == [["b", "c"]]


@pytest.mark.parametrize("path", MODULES.values(), ids=MODULES.keys())
def test_a_file_is_one_room(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350


def test_core_imports_run_one_way():
    for position, stem in enumerate(ORDER):
        later = {f"gradbridge.{name}" for name in ORDER[position + 1 :]}
        here = {name for name in MODULES if f"{name}.".startswith(f"gradbridge.{stem}.")}
        for name in here:
            names = {".".join(n.split(".")[:2]) for n in all_imports_of(MODULES[name])}
            assert not names & later, name


def test_the_kit_imports_core_and_no_backend():
    for path in ROOT.glob("core/gradbridge/testing/*.py"):
        assert not any(name.startswith("gradbridge_") for name in imports_of(path)), path


@pytest.mark.parametrize("package", sorted((ROOT / "backends").glob("gradbridge_*")), ids=lambda p: p.name)
def test_a_backend_imports_no_other_backend_and_its_declaration_no_framework(package):
    for path in package.glob("*.py"):
        names = imports_of(path)
        allowed = {package.name, SHARED}
        others = {n for n in names if n.startswith("gradbridge_") and n.split(".")[0] not in allowed}
        assert not others, f"{path} imports {others}"
    roots = {name.split(".")[0] for name in imports_of(package / "__init__.py")}
    assert not roots & set(FRAMEWORKS)


@pytest.mark.parametrize("package", sorted((ROOT / "backends").glob("gradbridge_*")), ids=lambda p: p.name)
def test_a_backend_needs_its_own_framework_and_no_other_even_in_a_function(package):
    """Its tests run where every framework is installed, so an import in a function would not be missed there."""
    allowed = {*sys.stdlib_module_names, *REQUIRED, *OWN[package.name], package.name, SHARED}
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in names:
                assert name.split(".")[0] in allowed, f"{path} imports {name}"
