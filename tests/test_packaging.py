"""The mapping of folders to packages is complete, and so is the wheel made from it."""

import shutil
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path
from zipfile import ZipFile

import pytest
import tomllib

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = ("agent", "envs", "inner_models", "experiments")
SHIPPED = {".py", ".typed", ".safetensors", ".json", ".html", ".css", ".js"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy of what it is made of, so that the checkout stays clean."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    command = [sys.executable, "-c", build, str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    return path


def test_every_folder_with_modules_is_a_package():
    folders = {path.parent for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").is_file()]


def test_wheel_holds_every_module_and_data_file(wheel):
    expected = {
        f"pacesetter/{path.relative_to(ROOT).as_posix()}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.suffix in SHIPPED and "results" not in path.parts
    }
    names = ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert {f"pacesetter/{folder}/py.typed" for folder in FOLDERS} <= expected


def test_metadata(wheel):
    stated = PYPROJECT["project"]["version"]
    assert version("pacesetter") == stated
    assert wheel.name == f"pacesetter-{stated}-py3-none-any.whl"
    with ZipFile(wheel) as archive:
        metadata = archive.read(f"pacesetter-{stated}.dist-info/METADATA").decode()
    assert "License-Expression: MIT" in metadata
    (script,) = entry_points(group="console_scripts", name="pacesetter")
    assert callable(script.load())
