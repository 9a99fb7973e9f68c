"""The examples in docstrings run, and print what they say."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("inner_models", "envs", "agent", "experiments")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
HOSTS = {"lightning", "transformers"}  # of adapters; no development dependency
MODULES = sorted(
    "pacesetter." + ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*.py")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_of(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        if error.name in HOSTS:
            pytest.skip(f"{error.name} is not installed")
        raise
    assert doctest.testmod(module, optionflags=FLAGS).failed == 0
