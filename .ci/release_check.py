"""Checks that a release would work for those who install it, from the files to the tests.

    make release-check
    make release-check GYMNASIUM=1.0.0 SB3=2.4.0 DEMO=quick TESTS="tests/envs/test_env.py"

Builds sdist and wheel, uses the plug-in in an empty environment with the core only, and runs the
demonstration and the tests with all extras. Nothing is taken from the checkout but the tests: the
code is that of the wheel. The last lines say what failed and where its log is.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import tomllib
from licences import PAGE, core, installed, page
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
NAMED = {"torch": "torch", "gymnasium": "gymnasium", "sb3": "stable-baselines3"}
"""Distributions whose version a parameter sets, by the parameter."""
POLICY = "pacesetter/agent/policies/default.safetensors"
RESULTS = ("report.html", "results.csv", "table.txt", "train/policy.safetensors")
MAX_WHEEL_BYTES = 2_000_000
SHOWN_LINES = 40
ISOLATING = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "MAKEFLAGS", "MFLAGS", "MAKELEVEL")
QUICK_DEMO = """
import sys
from pathlib import Path
from pacesetter.experiments.demo import DemoConfig, run_demo
config = DemoConfig(preset="smoke", steps=100, num_seeds=2, lrs=(1e-3, 1e-2))
print(run_demo(config, Path(sys.argv[1]), say=print, progress=False, command="release-check").table)
"""


class ReleaseError(Exception):
    """Something is not fit for a release; the message says what was expected and what there is."""


def project(root: Path = ROOT) -> dict[str, Any]:
    """The table `project` of pyproject.toml, the one place where the version is set."""
    table: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    return table


def check_texts(root: Path) -> None:
    """Compares what the texts say about the version with pyproject.toml.

    Raises:
        ReleaseError: it is no semantic version, a text has another one or another date, or the
            changelog has no dated, filled section for it.
    """
    version = project(root)["version"]
    if not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", version):
        raise ReleaseError(f"pyproject.toml: expected a semantic version like 1.2.3, got {version}")
    changes = (root / "CHANGELOG.md").read_text("utf-8")
    section = re.search(
        rf"^## \[{re.escape(version)}\] - (\d{{4}}-\d\d-\d\d)\n(?:(?!^## ).*\n)*?- \S",
        changes,
        re.M,
    )
    if section is None:
        raise ReleaseError(f"CHANGELOG.md: expected a section ## [{version}] - YYYY-MM-DD, filled")
    expected = (
        ("CITATION.cff", r"^version: (\S*)$", version),
        ("CITATION.cff", r"^date-released: (\S*)$", section.group(1)),
        ("README.md", r"version\s*=\s*\{([^}]*)\}", version),
        ("docs/cite.md", r"version\s*=\s*\{([^}]*)\}", version),
    )
    for name, pattern, value in expected:
        found = re.findall(pattern, (root / name).read_text("utf-8"), re.MULTILINE)
        if found != [value]:
            raise ReleaseError(f"{name}: expected {value} once, got {found}")


def check_wheel(path: Path, root: Path = ROOT) -> None:
    """Looks for what build, twine and check-wheel-contents do not know about.

    Raises:
        ReleaseError: the wheel is too large, lacks the policy or the licence, or names a path of
            this machine.
    """
    if path.stat().st_size >= MAX_WHEEL_BYTES:
        raise ReleaseError(f"{path.name}: not less than {MAX_WHEEL_BYTES} bytes")
    with ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    if POLICY not in members or not any(name.endswith("/licenses/LICENSE") for name in members):
        raise ReleaseError(f"{path.name}: the shipped policy or LICENSE is not in it")
    telling = [name for name, content in members.items() if str(root).encode() in content]
    if telling:
        raise ReleaseError(f"{path.name}: {telling} name a path of this machine, {root}")


def loosened(constraints: str, versions: Mapping[str, str]) -> str:
    r"""Pins for an environment in which some versions are chosen.

    The other pins become upper bounds, so that pip may step back where an old version needs it;
    torch stays where it was unless it is named itself.

    >>> print(loosened("numpy==2.4.6\ntorch==2.13.0\ngymnasium==1.4.0", {"gymnasium": "1.0.0"}))
    numpy<=2.4.6
    torch==2.13.0
    gymnasium==1.0.0
    """
    lines = []
    for line in constraints.splitlines():
        name, pinned, version = line.partition("==")
        asked = versions.get(canonicalize_name(name))
        free = versions and pinned and name != "torch"
        lines.append(f"{name}=={asked}" if asked else f"{name}<={version}" if free else line)
    return "\n".join(lines)


class Check:
    """The steps of one release check, in their order.

    Args:
        work: folder for environments, logs and what is built.
        versions: versions to try, by distribution.
        demo: ``"full"``, as users run it, or ``"quick"``: the smallest preset.
        tests: arguments of pytest; none is the whole suite.
    """

    STEPS = ("texts", "licences", "build", "core", "extras", "demo", "tests")

    def __init__(
        self, work: Path, *, versions: Mapping[str, str], demo: str, tests: Sequence[str]
    ) -> None:
        self.work, self.versions, self.quick = work, versions, demo == "quick"
        self.pytest_arguments = tests
        self.programs = work / "extras" / "bin"

    def run(self, log: str, *command: str | Path, cwd: Path | None = None, code: int = 0) -> str:
        """Runs a program apart from the environment of the caller; returns what it printed.

        Raises:
            ReleaseError: it ended in another exit code than `code`.
        """
        path = self.work / f"{log}.log"
        with path.open("w", encoding="utf-8") as out:
            done = subprocess.run(
                command,
                cwd=cwd or self.work,
                env={key: value for key, value in os.environ.items() if key not in ISOLATING},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                check=False,
            )
        printed = path.read_text(encoding="utf-8", errors="replace")
        if done.returncode != code:
            tail = "\n".join(printed.splitlines()[-SHOWN_LINES:])
            raise ReleaseError(f"{log}: exit code {done.returncode}, see {path}; it ends:\n{tail}")
        return printed

    @property
    def wheel(self) -> Path:
        """The wheel that the step `build` made."""
        found = sorted((self.work / "dist").glob("*.whl"))
        if len(found) != 1:
            raise ReleaseError(f"expected one wheel in {self.work / 'dist'}: run step `build`")
        return found[0]

    def texts(self) -> None:
        """Versions, changelog, citation."""
        check_texts(ROOT)

    def licences(self) -> None:
        """The page of licences says what is installed; no licence of the core is doubtful."""
        if PAGE.read_text("utf-8") != page(installed(), core()):
            raise ReleaseError(f"{PAGE} is not what is installed: run `make licences`, read it")

    def build(self, *flags: str) -> None:
        """Sdist, and the wheel from it, of what git knows or would add."""
        source, dist = self.work / "source", self.work / "dist"
        for folder in (source, dist):
            shutil.rmtree(folder, ignore_errors=True)
        files = ("git", "ls-files", "--cached", "--others", "--exclude-standard")
        listed = self.run("sources", *files, cwd=ROOT)
        for name in listed.splitlines():
            if (ROOT / name).is_file():  # a file that was removed is still listed
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, source / name)
        python: tuple[str, str] = (sys.executable, "-m")
        self.run("build", *python, "build", *flags, "--outdir", dist, source)
        self.run("twine", *python, "twine", "check", "--strict", *sorted(dist.iterdir()))
        config = ("--config", ROOT / "pyproject.toml")
        self.run("contents", *python, "check_wheel_contents", *config, self.wheel)
        check_wheel(self.wheel)
        for path in sorted(dist.iterdir()):
            print(f"  {path.name}: {path.stat().st_size / 1e6:.2f} MB")

    def environment(self, name: str, wanted: str) -> None:
        """Makes a virtual environment and installs the wheel with some extras in it."""
        venv.create(self.work / name, with_pip=True, clear=True)
        pins = self.work / f"{name}-constraints.txt"
        pins.write_text(loosened((ROOT / "constraints.txt").read_text("utf-8"), self.versions))
        pip = (self.work / name / "bin" / "python", "-m", "pip", "--disable-pip-version-check")
        self.run(f"{name}-install", *pip, "install", "--no-compile", wanted, "-c", pins)
        self.run(f"{name}-pip-check", *pip, "check")

    def core(self) -> None:
        """The core only: the plug-in drives a job, and commands name the extra they lack."""
        self.environment("core", str(self.wheel))
        programs, script = self.work / "core" / "bin", ROOT / ".ci" / "plug_in_alone.py"
        print(self.run("core-job", programs / "python", "-I", script), end="")
        said = self.run("core-demo", programs / "pacesetter", "demo", "--out", "no-demo", code=3)
        if "pacesetter[train]" not in said:
            raise ReleaseError(f"expected a line that names pacesetter[train], got: {said}")

    def extras(self) -> None:
        """All extras, in the versions that were asked for."""
        names = sorted(set(project()["optional-dependencies"]) - {"browser"})
        self.environment("extras", f"{self.wheel}[{','.join(names)}]")
        code = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"
        for name in NAMED.values():
            got = self.run("version", self.programs / "python", "-I", "-c", code, name).strip()
            if got.partition("+")[0] != self.versions.get(name, got).partition("+")[0]:
                raise ReleaseError(f"asked for {name} {self.versions[name]}, got {got}")
            print(f"  {name} {got}")

    def demo(self) -> None:
        """The demonstration."""
        out = self.work / "demo"
        shutil.rmtree(out, ignore_errors=True)
        full = (self.programs / "pacesetter", "demo", "--quiet", "--out", out)
        quick = (self.programs / "python", "-I", "-c", QUICK_DEMO, out)
        self.run("demo", *(quick if self.quick else full))
        missing = [name for name in RESULTS if not (out / name).is_file()]
        if missing:
            raise ReleaseError(f"the demonstration ended without {', '.join(missing)}")

    def tests(self) -> None:
        """The tests of the checkout, on the code of the wheel."""
        arguments = ("-p", "no:cacheprovider", *self.pytest_arguments)
        said = self.run("tests", self.programs / "pytest", *arguments, cwd=ROOT)
        print(f"  {said.splitlines()[-1]}")

    def failure(self, steps: Sequence[str]) -> str | None:
        """Takes steps in their order up to the first that fails; returns why, else None."""
        chosen = [name for name in self.STEPS if name in steps]
        for number, name in enumerate(chosen, start=1):
            step = getattr(self, name)
            print(f"[{number}/{len(chosen)}] {name}: {step.__doc__.splitlines()[0]}", flush=True)
            try:
                step()
            except (ReleaseError, OSError, ValueError) as error:
                return f"step `{name}` failed: {error}"
        return None


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 0 where everything passed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for option, name in NAMED.items():
        parser.add_argument(f"--{option}", metavar="VERSION", help=f"{name} to install and test")
    parser.add_argument("--demo", choices=("full", "quick"), default="full")
    parser.add_argument("--tests", default="", metavar="ARGS", help="of pytest (default: all)")
    parser.add_argument("--steps", nargs="+", choices=Check.STEPS, default=Check.STEPS)
    parser.add_argument("--work", type=Path, help="folder to work in, kept (default: a new one)")
    given = parser.parse_args(argv)
    work = (given.work or Path(tempfile.mkdtemp(prefix="release-check-"))).resolve()
    work.mkdir(parents=True, exist_ok=True)
    versions = {name: getattr(given, key) for key, name in NAMED.items() if getattr(given, key)}
    check = Check(work, versions=versions, demo=given.demo, tests=given.tests.split())
    failure = check.failure(given.steps)
    if failure:
        print(f"release-check: {failure}\nfiles are kept in {work}", file=sys.stderr)
        return 1
    if set(given.steps) == set(Check.STEPS):
        shutil.copytree(work / "dist", ROOT / "dist", dirs_exist_ok=True)
        print("release-check: passed; what was checked is in dist/")
    else:
        print(f"release-check: {', '.join(given.steps)} passed")
    if given.work is None:
        shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
