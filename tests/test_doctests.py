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
    f"pacesetter.{folder}.{path.stem}".removesuffix(".__init__")
    for folder in FOLDERS
    for path in (ROOT / folder).glob("*.py")
    if path.stem != "__main__"
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
