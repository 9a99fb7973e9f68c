"""Texts and files of a release, and the check that refuses what is unfit."""

import re
import shutil
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
VERSION = PROJECT["version"]
PINS = {
    canonicalize_name(name): pinned
    for name, pinned in re.findall(
        r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE
    )
}
MEMBERS = {
    "pacesetter/agent/policies/default.safetensors": b"policy",
    f"pacesetter-{VERSION}.dist-info/licenses/LICENSE": b"MIT",
}


@pytest.fixture
def ci(monkeypatch):
    """Modules of .ci by name."""
    monkeypatch.syspath_prepend(ROOT / ".ci")
    return import_module


@pytest.fixture
def check(ci, tmp_path):
    return ci("release_check").Check(tmp_path, versions={}, demo="quick", tests=[])


def direct_requirements():
    extras = PROJECT["optional-dependencies"]
    texts = sum((extras[name] for name in extras.keys() - {"browser"}), PROJECT["dependencies"])
    return {canonicalize_name(Requirement(text).name) for text in texts}


def test_all_texts_have_the_version_of_pyproject(ci):
    ci("release_check").check_texts(ROOT)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("pyproject.toml", VERSION, "1.0", "semantic version like 1.2.3, got 1.0"),
        ("CITATION.cff", f"version: {VERSION}", "version: 9.9.9", "CITATION.cff: .*got .*9.9.9"),
        ("CITATION.cff", "date-released: 2", "date-released: 1", "expected 2"),
        ("README.md", f"{{{VERSION}}}", "{9.9.9}", r"README.md: .*got \['9.9.9'\]"),
        ("docs/cite.md", f"{{{VERSION}}}", "{9.9.9}", r"cite.md: .*got \['9.9.9'\]"),
        ("CHANGELOG.md", f"[{VERSION}] - 2", f"[{VERSION}] - soon", "expected a section"),
    ],
)
def test_texts_that_disagree_are_refused(ci, tmp_path, name, old, new, message):
    for file in ("pyproject.toml", "CHANGELOG.md", "CITATION.cff", "README.md", "docs/cite.md"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    text = (tmp_path / name).read_text(encoding="utf-8")
    assert old in text
    (tmp_path / name).write_text(text.replace(old, new, 1), encoding="utf-8")
    module = ci("release_check")
    with pytest.raises(module.ReleaseError, match=message):
        module.check_texts(tmp_path)


@pytest.mark.slow
@pytest.mark.processes
def test_distributions_are_complete_and_small(check, capsys):
    check.build("--no-isolation")
    assert f"pacesetter-{VERSION}.tar.gz: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pacesetter/agent/policies/default.safetensors": None}, "policy or LICENSE is not in it"),
        ({"pacesetter/a.py": f"x = '{ROOT}/a'".encode()}, "path of this machine"),
        ({"pacesetter/large.json": bytes(2_000_000)}, "not less than 2000000 bytes"),
    ],
)
def test_an_unfit_wheel_is_refused(ci, tmp_path, changes, message):
    module, path = ci("release_check"), tmp_path / "some.whl"
    for members in (MEMBERS, {**MEMBERS, **changes}):
        with ZipFile(path, "w") as archive:
            for name, content in members.items():
                if content is not None:
                    archive.writestr(name, content)
        if members is MEMBERS:
            module.check_wheel(path)
    with pytest.raises(module.ReleaseError, match=message):
        module.check_wheel(path)


def test_named_versions_are_pinned_and_the_others_bounded(ci):
    loosened = ci("release_check").loosened
    pins = "# pins\nnumpy==2.4.6\nstable_baselines3==2.9.2\ntorch==2.13.0"
    assert loosened(pins, {"stable-baselines3": "2.4.0"}) == (
        "# pins\nnumpy<=2.4.6\nstable_baselines3==2.4.0\ntorch==2.13.0"
    )


def test_a_command_runs_apart_and_a_failure_shows_its_last_lines(ci, check, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    code = "import os; print(os.getcwd(), 'PYTHONPATH' in os.environ)"
    assert check.run("log", sys.executable, "-c", code).split() == [str(check.work), "False"]
    code = "for n in range(100): print('line', n)\nraise SystemExit(3)"
    with pytest.raises(ci("release_check").ReleaseError, match="exit code 3") as failure:
        check.run("log", sys.executable, "-c", code)
    assert "line 99" in str(failure.value)


def test_the_check_stops_at_the_first_failure_and_names_it(ci, tmp_path, capsys):
    assert ci("release_check").main(["--steps", "core", "demo", "--work", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "step `core` failed: expected one wheel" in said.err
    assert "[2/2]" not in said.out


def test_page_of_licences_has_every_dependency(ci):
    licences = ci("licences")
    listed = dict(re.findall(r"^\| (\S+) \| (.*) \|$", licences.PAGE.read_text("utf-8"), re.M))
    installed = licences.installed()
    for name in direct_requirements():
        assert name in listed, "run `make licences`"
        if PINS[name] == version(name).partition("+")[0]:  # not another that is tried out
            assert listed[name] == installed[name], "run `make licences`"
    core = licences.core()
    licences.page(installed, core)  # no licence of the core is doubtful


@pytest.mark.parametrize("licence", ["MIT OR GPL-2.0", "UNKNOWN"])
def test_a_doubtful_licence_in_the_core_is_refused(ci, licence):
    licences = ci("licences")
    assert f"| x | {licence} |" in licences.page({"a": "MIT", "x": licence}, {"a"})
    with pytest.raises(ValueError, match="x, which the core needs"):
        licences.page({"a": "MIT", "x": licence}, {"x"})


def test_table_of_versions_in_the_readme_is_that_of_the_pins():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (torch|gymnasium|stable-baselines3) \| (.*) \|$", text, re.MULTILINE)
    table = {name: cells.split(" | ") for name, cells in rows}
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["train"]]
    floors = {r.name: str(r.specifier).removeprefix(">=") for r in map(Requirement, wanted)}
    assert len(table) == 3
    for name, (allowed, oldest, newest) in table.items():
        assert Version(allowed) == Version(floors[name])
        assert Version(allowed) <= Version(oldest) <= Version(PINS[name]) <= Version(newest)


def test_every_dependency_is_pinned(ci):
    assert ci("licences").closure(extras=True) <= PINS.keys()
