"""One direction of imports, light packages, and nothing unsafe: read off the source itself."""

import ast
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("inner_models", "envs", "agent", "experiments")  # each may import those before it
MODULES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
TESTS = sorted((ROOT / "tests").glob("*.py"))
MAX_LINES = 330
UNSAFE = {"pickle", "cloudpickle", "dill", "shelve"}
HEAVY = {"gymnasium", "stable_baselines3", "sklearn", "matplotlib", "scipy", "tensorboard"}


def label(path):
    return path.relative_to(ROOT).as_posix()


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported_names(tree):
    """Full dotted names of all imports; those of relative imports start with a dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (f"{module}.{alias.name}" for alias in node.names)


def unsafe_load(node):
    """Whether a call is a `torch.load` without `weights_only=True`, or numpy's with pickles."""
    if not isinstance(node, ast.Call):
        return False
    function = ast.unparse(node.func)
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if function == "torch.load":
        return keywords.get("weights_only") != "True"
    return function in {"np.load", "numpy.load"} and keywords.get("allow_pickle") == "True"


def modules_after(statement):
    """Top-level names in `sys.modules` of a fresh interpreter after one statement."""
    code = (
        f"{statement}\nimport json, sys\nprint(json.dumps([m.split('.')[0] for m in sys.modules]))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("path", MODULES, ids=label)
def test_imports_are_absolute_and_point_downwards(path):
    layer = LAYERS.index(path.relative_to(ROOT).parts[0])
    for name in imported_names(parse(path)):
        first, *rest = name.split(".")
        assert first not in {"", *LAYERS}, f"import {name}: write pacesetter.…"
        if first == "pacesetter":
            assert rest, "import pacesetter: import one of its packages"
            assert LAYERS.index(rest[0]) <= layer, f"import {name} points upwards"


@pytest.mark.parametrize("path", MODULES, ids=label)
def test_module_says_why_it_exists_and_is_short(path):
    assert ast.get_docstring(parse(path)), "no docstring"
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{lines} lines; more than {MAX_LINES} are two modules"


@pytest.mark.parametrize("path", MODULES + TESTS, ids=label)
def test_nothing_is_unpickled(path):
    tree = parse(path)
    assert not [name for name in imported_names(tree) if name.split(".")[0] in UNSAFE]
    assert "torch.load" not in imported_names(tree), "write torch.load, so that it can be found"
    assert not [ast.unparse(node) for node in ast.walk(tree) if unsafe_load(node)]


@pytest.mark.parametrize("layer", LAYERS)
def test_a_package_alone_imports_nothing_heavy(layer):
    loaded = modules_after(f"import pacesetter.{layer}")
    assert not loaded & {"torch", "numpy", *HEAVY}


@pytest.mark.parametrize(
    "statement",
    ["import pacesetter.agent.scheduler", "from pacesetter.agent import LearnedScheduler"],
)
def test_plugin_needs_only_the_core_dependencies(statement):
    loaded = modules_after(statement)
    assert "torch" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("layer", LAYERS[:-1])
def test_lazy_names_resolve(layer):
    package = import_module(f"pacesetter.{layer}")
    assert package.__all__ == sorted(package.__all__)
    for name in package.__all__:
        assert getattr(package, name) is not None
        assert name in dir(package)
    with pytest.raises(AttributeError, match=f"module 'pacesetter.{layer}' has no attribute 'no'"):
        _ = package.no
