"""One direction of imports, light packages, and nothing unsafe: read off the source itself."""

import ast
import graphlib
import subprocess
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("inner_models", "envs", "agent", "experiments")  # each may import those before it
MODULES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MAX_LINES = 450
MAX_ENTRIES = 14
UNSAFE = {"pickle", "cloudpickle", "dill", "shelve"}
HEAVY = {"gymnasium", "stable_baselines3", "sklearn", "matplotlib", "scipy", "tensorboard"}


def label(path):
    return path.relative_to(ROOT).as_posix()


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


TREES = {path: parse(path) for path in MODULES + TESTS}
NODES = {path: list(ast.walk(tree)) for path, tree in TREES.items()}
NAMES = {
    ".".join(["pacesetter", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(
        ".__init__"
    ): path
    for path in MODULES
}


def imported_names(path):
    """Full dotted names of all imports; those of relative imports start with a dot."""
    for node in NODES[path]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imported_modules(path):
    """Paths of the modules of this project that a module imports, anywhere in its code."""
    for name in imported_names(path):
        found = NAMES.get(name) or NAMES.get(name.rpartition(".")[0])
        if found not in {None, path}:
            yield found


def wing(path):
    """The subpackage of a module; a module directly in one of the four folders is its own."""
    return label(path.parent) if path.parent.parent != ROOT else label(path)


def cycle(graph):
    """The nodes of a cycle, none if there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def unsafe_load(node):
    """Whether a call is a `torch.load` without `weights_only=True`, or numpy's with pickles."""
    if not isinstance(node, ast.Call):
        return False
    function = ast.unparse(node.func)
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if function == "torch.load":
        return keywords.get("weights_only") != "True"
    return function in {"np.load", "numpy.load"} and keywords.get("allow_pickle") == "True"


def module_edges():
    """Modules that each module imports; packages only re-export and do not count."""
    packages = {path for path in MODULES if path.name == "__init__.py"}
    return {
        path: {found for found in imported_modules(path) if found not in packages}
        for path in MODULES
        if path not in packages
    }


def modules_after(statement):
    """Top-level names in `sys.modules` of a fresh interpreter after one statement."""
    code = f"{statement}\nimport sys\nprint(*(m.split('.')[0] for m in sys.modules))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_imports_are_absolute_and_point_downwards():
    wrong = []
    for path in MODULES:
        layer = LAYERS.index(path.relative_to(ROOT).parts[0])
        for name in imported_names(path):
            first, *rest = name.split(".")
            if first in {"", *LAYERS} or name == "pacesetter":
                wrong.append(f"{label(path)}: import {name}: write pacesetter.…")
            elif first == "pacesetter" and LAYERS.index(rest[0]) > layer:
                wrong.append(f"{label(path)}: import {name} points upwards")
    assert not wrong


def test_neither_modules_nor_wings_import_each_other_in_a_circle():
    edges = module_edges()
    wings = {}
    for path, found in edges.items():
        wings.setdefault(wing(path), set()).update(set(map(wing, found)) - {wing(path)})
    assert cycle({label(path): set(map(label, found)) for path, found in edges.items()}) == []
    assert cycle(wings) == []


def test_a_level_has_about_a_dozen_entries():
    folders = {path.parent for path in MODULES}
    entries = {path for path in {*MODULES, *folders} if path.name != "__init__.py"}
    counts = Counter(label(path.parent) for path in entries)
    assert not {folder: count for folder, count in counts.items() if count > MAX_ENTRIES}


def test_modules_have_a_docstring_and_one_concept():
    assert not [label(path) for path in MODULES if not ast.get_docstring(TREES[path])]
    long = {label(p): len(p.read_text(encoding="utf-8").splitlines()) for p in MODULES}
    assert not {name: lines for name, lines in long.items() if lines > MAX_LINES}


def test_nothing_is_unpickled():
    for path, nodes in NODES.items():
        names = list(imported_names(path))
        assert not [name for name in names if name.split(".")[0] in UNSAFE], label(path)
        assert "torch.load" not in names, f"{label(path)}: write torch.load, to be found"
        found = [ast.unparse(node) for node in nodes if unsafe_load(node)]
        assert not found, label(path)


def test_packages_alone_import_nothing_heavy():
    loaded = modules_after(f"import {', '.join(f'pacesetter.{layer}' for layer in LAYERS)}")
    assert not loaded & {"torch", "numpy", *HEAVY}


def test_plugin_needs_only_the_core_dependencies():
    loaded = modules_after("from pacesetter.agent import LearnedScheduler")
    assert "torch" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("layer", LAYERS)
def test_lazy_names_resolve(layer):
    package = import_module(f"pacesetter.{layer}")
    for name in package.__all__:
        assert getattr(package, name) is not None
        assert name in dir(package)
    with pytest.raises(AttributeError, match=f"module 'pacesetter.{layer}' has no attribute 'no'"):
        _ = package.no
