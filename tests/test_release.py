"""What is said about a release is true, and the check of releases catches what is not."""

import re
import shutil
import sys
from email.message import Message
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from zipfile import ZipFile

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
VERSION = PROJECT["version"]
CHANGES = f"# Changelog\n\n## [Unreleased]\n\n## [{VERSION}] - 2026-01-31\n\n### Added\n\n- A.\n"
INFO = f"pacesetter-{VERSION}.dist-info"


@pytest.fixture
def ci(monkeypatch):
    """Modules of .ci by name."""
    monkeypatch.syspath_prepend(ROOT / ".ci")
    return import_module


@pytest.fixture
def texts(tmp_path):
    """A folder with what tells the version."""
    for name in ("pyproject.toml", "CHANGELOG.md", "CITATION.cff", "README.md", "docs/cite.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def members():
    """The least that a wheel has to hold."""
    return {
        "pacesetter/agent/policies/default.safetensors": b"policy",
        f"{INFO}/METADATA": f"Metadata-Version: 2.4\nVersion: {VERSION}\n".encode(),
        f"{INFO}/licenses/LICENSE": b"MIT",
    }


def wheel(folder, files):
    path = folder / "some.whl"
    with ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def package(**fields):
    """Metadata of a package."""
    message = Message()
    for name, value in fields.items():
        for one in value if isinstance(value, list) else [value]:
            message[name.replace("_", "-")] = one
    return message


def test_all_texts_have_the_version_of_pyproject(ci):
    assert ci("release_files").check_texts(ROOT) == VERSION


def test_citation_has_what_the_format_asks_for():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    keys = dict(re.findall(r"^([a-z-]+):[ \t]*(.*)$", text, flags=re.MULTILINE))
    assert keys["cff-version"] == "1.2.0"
    assert keys["version"] == VERSION
    assert keys["license"] == PROJECT["license"]
    assert {"message", "title", "authors"} <= set(keys)
    assert f"  - name: {PROJECT['authors'][0]['name']}\n" in text


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("pyproject.toml", VERSION, "1.0", "semantic version like 1.2.3, got 1.0"),
        ("CITATION.cff", f"version: {VERSION}", "version: 9.9.9", "CITATION.cff: .*got 9.9.9"),
        ("CITATION.cff", f"version: {VERSION}", "", f"expected version {VERSION}, got None"),
        ("CITATION.cff", "date-released: 2", "date-released: 1", "expected date-released 2"),
        ("README.md", f"{{{VERSION}}}", "{9.9.9}", r"README.md: .*got \['9.9.9'\]"),
        ("docs/cite.md", f"{{{VERSION}}}", "{9.9.9}", r"cite.md: .*got \['9.9.9'\]"),
        ("CHANGELOG.md", f"[{VERSION}]", "[9.9.9]", "expected a section"),
    ],
)
def test_texts_that_disagree_are_refused(ci, texts, name, old, new, message):
    text = (texts / name).read_text(encoding="utf-8")
    assert old in text
    (texts / name).write_text(text.replace(old, new, 1), encoding="utf-8")
    files = ci("release_files")
    with pytest.raises(files.ReleaseError, match=message):
        files.check_texts(texts)


def test_changelog_section_is_found_and_has_to_be_dated_and_filled(ci):
    files = ci("release_files")
    assert files.release_date(CHANGES, VERSION) == "2026-01-31"
    for old, new, message in (
        (f"## [{VERSION}] - 2026-01-31\n", "", "expected a section .*got ## .Unreleased"),
        (" - 2026-01-31", "", "expected the heading"),
        (" - 2026-01-31", " - soon", "expected the heading"),
        ("- A.\n", "", "lists nothing"),
    ):
        assert old in CHANGES
        with pytest.raises(files.ReleaseError, match=message):
            files.release_date(CHANGES.replace(old, new), VERSION)


def test_distributions_are_complete_and_small(ci, tmp_path, capsys):
    check = ci("release_check")
    check.build(check.Plan(work=tmp_path), isolated=False)
    assert check.Plan(work=tmp_path).wheel.stat().st_size < 2_000_000
    assert f"pacesetter-{VERSION}.tar.gz: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pacesetter/agent/policies/default.safetensors": None}, "default.safetensors is not in"),
        ({f"{INFO}/licenses/LICENSE": None}, "LICENSE is not in it"),
        ({f"{INFO}/METADATA": b"Version: 9.9.9\n"}, "not of version"),
        ({"tests/test_release.py": b""}, r"only, got \['tests/test_release.py'\]"),
        ({"pacesetter/a.py": f"x = '{ROOT}/a'".encode()}, "path of this machine"),
        ({"pacesetter/large.json": bytes(2_000_000)}, "less than 2000000 bytes, got 2"),
    ],
)
def test_an_unfit_wheel_is_refused(ci, tmp_path, changes, message):
    files = ci("release_files")
    files.check_wheel(wheel(tmp_path, members()), version=VERSION, root=ROOT)
    unfit = {name: data for name, data in {**members(), **changes}.items() if data is not None}
    with pytest.raises(files.ReleaseError, match=message):
        files.check_wheel(wheel(tmp_path, unfit), version=VERSION, root=ROOT)


def test_named_versions_are_pinned_and_the_others_bounded(ci):
    loosened = ci("release_files").loosened
    pins = "# pins\nnumpy==2.4.6\nstable_baselines3==2.9.2\ntorch==2.13.0"
    assert loosened(pins, {}) == pins
    assert loosened(pins, {"stable-baselines3": "2.4.0"}) == (
        "# pins\nnumpy<=2.4.6\nstable_baselines3==2.4.0\ntorch==2.13.0"
    )
    assert "torch==2.6.0" in loosened(pins, {"torch": "2.6.0"})


def test_a_command_runs_apart_and_a_failure_shows_its_last_lines(ci, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    plans = ci("release_plan")
    plan = plans.Plan(work=tmp_path)
    code = "import os; print(os.getcwd(), 'PYTHONPATH' in os.environ)"
    assert plans.run(plan, "log", [sys.executable, "-c", code]).split() == [str(tmp_path), "False"]
    code = "for n in range(100): print('line', n)\nraise SystemExit(3)"
    with pytest.raises(plans.ReleaseError, match="exit code 3, expected 0") as failure:
        plans.run(plan, "log", [sys.executable, "-c", code])
    assert "line 99" in str(failure.value)
    assert "line 9\n" not in str(failure.value)
    plans.run(plan, "log", [sys.executable, "-c", code], code=3)


def test_the_check_stops_at_the_first_failure_and_names_it(ci, tmp_path, monkeypatch, capsys):
    check, taken = ci("release_check"), []

    def fails(plan):
        """Fails."""
        raise check.ReleaseError("no luck")

    def passes(plan):
        """Passes."""
        taken.append(plan)

    monkeypatch.setattr(check, "STEPS", {"one": passes, "two": fails, "three": passes})
    plan = check.Plan(work=tmp_path)
    assert check.check(plan, ["one", "two", "three"]) == "step `two` failed: no luck"
    assert taken == [plan]
    assert capsys.readouterr().out == "[1/3] one: Passes.\n[2/3] two: Fails.\n"
    assert check.check(plan, ["three"]) is None


def test_a_step_without_a_wheel_says_which_step_makes_one(ci, tmp_path, capsys):
    assert ci("release_check").main(["--steps", "core", "--work", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "step `core` failed: expected one *.whl" in said.err
    assert "run step `build`" in said.err


def test_only_git_checkouts_are_built(ci, tmp_path):
    plans = ci("release_plan")
    with pytest.raises(plans.ReleaseError, match="expected a git checkout"):
        plans.copy_sources(tmp_path, tmp_path / "copy")


def test_core_has_no_doubtful_licence(ci):
    licences = ci("licences")
    core = {
        name: kind for name, (kind, comes) in licences.packages(ROOT).items() if comes == "core"
    }
    assert {"torch", "numpy", "safetensors", "sympy"} <= set(core)
    assert not {name: kind for name, kind in core.items() if licences.is_doubtful(kind)}


def test_page_of_licences_has_every_dependency(ci):
    page = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    listed = {name: licence for name, licence, _ in rows[1:]}
    licences = ci("licences")
    extras = PROJECT["optional-dependencies"]
    direct = sum((extras[name] for name in extras.keys() - {"browser"}), PROJECT["dependencies"])
    pins = re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    pinned = {licences.canonical(name): number for name, number in pins}
    for text in direct:
        name = licences.canonical(Requirement(text).name)
        assert name in listed, "run `make licences`"
        if pinned[name] == version(name).partition("+")[0]:  # not another that is tried out
            found = licences.licence_of(licences.metadata(name))
            assert listed[name] == found, "run `make licences`"


@pytest.mark.parametrize(
    ("fields", "licence", "doubtful"),
    [
        (
            {"License_Expression": "MIT OR GPL-2.0-only", "License": "x"},
            "MIT OR GPL-2.0-only",
            True,
        ),
        ({"License": "MIT License"}, "MIT", False),
        ({"License": "GNU General Public License v3"}, "GNU General Public License v3", True),
        ({"License": "a\nlong\ntext", "Classifier": ["License :: OSI Approved"]}, "unknown", True),
        (
            {
                "License": "UNKNOWN",
                "Classifier": [
                    "Topic :: Software Development",
                    "License :: DFSG approved",
                    "License :: OSI Approved :: MIT License",
                    "License :: OSI Approved :: Apache Software License",
                ],
            },
            "MIT AND Apache",
            False,
        ),
        ({"Name": "nothing-said"}, "unknown", True),
    ],
)
def test_licences_are_read_and_judged(ci, fields, licence, doubtful):
    licences = ci("licences")
    assert licences.licence_of(package(**fields)) == licence
    assert licences.is_doubtful(licence) == doubtful


def test_dependencies_of_dependencies_count_and_those_of_gpus_do_not(ci):
    known = {
        "a": ["B_b>=1", "c; extra == 'more'", "nvidia-cublas-cu12", "triton; os_name != 'none'"],
        "b-b": ["a[more]", "d; os_name == 'none'"],
        "c": None,
    }

    def requirements(name):
        if name not in known:
            raise PackageNotFoundError(name)
        return known[name]

    licences = ci("licences")
    assert licences.closure(["a"], requirements) == {"a", "b-b", "c"}
    with pytest.raises(licences.ReleaseError, match="d is not installed: run `make venv`"):
        licences.closure(["d"], requirements)


def test_a_doubtful_licence_in_the_core_is_refused(ci, monkeypatch):
    licences = ci("licences")
    monkeypatch.setattr(licences, "packages", lambda root: {"x": ("AGPL-3.0", "core")})
    with pytest.raises(licences.ReleaseError, match=r"x, which the core needs, .*AGPL"):
        licences.page_of(ROOT)
    monkeypatch.setattr(licences, "packages", lambda root: {"x": ("AGPL-3.0", "docs")})
    assert "| x | AGPL-3.0 | docs |" in licences.page_of(ROOT)


def test_table_of_versions_in_the_readme_is_that_of_the_pins():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (torch|gymnasium|stable-baselines3) \| (.*) \|$", text, re.MULTILINE)
    table = {name: cells.split(" | ") for name, cells in rows}
    pins = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    pins["stable-baselines3"] = pins["stable_baselines3"]
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["train"]]
    floors = {r.name: str(r.specifier).removeprefix(">=") for r in map(Requirement, wanted)}
    assert len(table) == 3
    for name, (allowed, oldest, newest) in table.items():
        assert Version(allowed) == Version(floors[name])
        assert Version(allowed) <= Version(oldest) <= Version(pins[name]) <= Version(newest)
