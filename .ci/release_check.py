"""Checks that a release would work for those who install it, from the files to the tests.

    make release-check
    make release-check GYMNASIUM=1.0.0 SB3=2.4.0 DEMO=quick TESTS="tests/test_env.py"

Builds sdist and wheel, uses the plug-in in an empty environment with the core only, and runs the
demonstration and the tests with all extras. Nothing is taken from the checkout but the tests: the
code is that of the wheel. What failed, and where its log lies, is said in the last lines.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import venv
from collections.abc import Callable, Sequence
from pathlib import Path

from licences import LICENCES, SKIPPED_EXTRAS, page_of
from release_files import (
    ReleaseError,
    check_sdist,
    check_texts,
    check_wheel,
    loosened,
    project_table,
)
from release_plan import ROOT, Plan, copy_sources, one_of, run

HERE = Path(__file__).resolve().parent
NAMED = {"torch": "torch", "gymnasium": "gymnasium", "sb3": "stable-baselines3"}
"""Distributions whose version a parameter sets, by the parameter."""
RESULTS = ("report.html", "results.csv", "table.txt", "train/policy.safetensors")
QUICK_DEMO = """
import sys
from pathlib import Path
from pacesetter.experiments.demo import DemoConfig, run_demo
config = DemoConfig(preset="smoke", steps=100, num_seeds=2, lrs=(1e-3, 1e-2))
print(run_demo(config, Path(sys.argv[1]), say=print, progress=False, command="release-check").table)
"""


def texts(plan: Plan) -> None:
    """Versions, changelog, citation."""
    print(f"  version {check_texts(plan.root)}")


def licences(plan: Plan) -> None:
    """The page of licences says what is installed, and nothing of the core is in doubt."""
    page = (plan.root / LICENCES).read_text(encoding="utf-8")
    if page != page_of(plan.root):
        raise ReleaseError(f"{LICENCES} is not what is installed: run `make licences`, read it")


def build(plan: Plan, *, isolated: bool = True) -> None:
    """Sdist, and the wheel from it, of a copy of the checkout.

    Args:
        plan: where to work.
        isolated: fetch setuptools as users' pip does, rather than use the one installed.
    """
    source, dist = plan.work / "source", plan.work / "dist"
    for folder in (source, dist):
        shutil.rmtree(folder, ignore_errors=True)
    copy_sources(plan.root, source)
    flags = [] if isolated else ["--no-isolation"]
    run(plan, "build", [sys.executable, "-m", "build", *flags, "--outdir", dist, source])
    version = project_table(plan.root)["version"]
    sdist = one_of(dist, "*.tar.gz")
    check_sdist(sdist)
    check_wheel(plan.wheel, version=version, root=plan.root)
    for path in (sdist, plan.wheel):
        print(f"  {path.name}: {path.stat().st_size / 1e6:.2f} MB")


def environment(plan: Plan, name: str, extras: Sequence[str] = ()) -> Path:
    """A new virtual environment with the wheel in it.

    Args:
        plan: where to work, and what versions to take.
        name: of its folder.
        extras: what to install beyond the core.

    Returns:
        The folder of its programs.

    Raises:
        ReleaseError: it cannot be installed, or installed packages do not fit each other.
    """
    wanted = f"{plan.wheel}[{','.join(extras)}]" if extras else str(plan.wheel)
    folder = plan.work / name
    venv.create(folder, with_pip=True, clear=True)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    pins = plan.work / f"{name}-constraints.txt"
    pinned = (plan.root / "constraints.txt").read_text(encoding="utf-8")
    pins.write_text(loosened(pinned, plan.versions), encoding="utf-8")
    pip: list[str | Path] = [programs / "python", "-m", "pip", "--disable-pip-version-check"]
    run(plan, f"{name}-install", [*pip, "install", "--no-compile", wanted, "-c", pins])
    run(plan, f"{name}-pip-check", [*pip, "check"])
    return programs


def core(plan: Plan) -> None:
    """The core only: the plug-in drives a job, and commands name the extra they lack."""
    programs = environment(plan, "core")
    print(run(plan, "core-job", [programs / "python", "-I", HERE / "plug_in_alone.py"]), end="")
    said = run(plan, "core-demo", [programs / "pacesetter", "demo", "--out", "no-demo"], code=3)
    if "pacesetter[train]" not in said:
        raise ReleaseError(f"expected a line that names pacesetter[train], got: {said}")


def extras(plan: Plan) -> None:
    """All extras, in the versions that were asked for."""
    names = sorted(set(project_table(plan.root)["optional-dependencies"]) - SKIPPED_EXTRAS)
    programs = environment(plan, "extras", names)
    code = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"
    for name in ("numpy", *NAMED.values()):
        got = run(plan, "extras-version", [programs / "python", "-I", "-c", code, name]).strip()
        asked = plan.versions.get(name)
        if asked is not None and got.partition("+")[0] != asked.partition("+")[0]:
            raise ReleaseError(f"asked for {name} {asked}, got {got}")
        print(f"  {name} {got}")


def demo(plan: Plan) -> None:
    """The demonstration."""
    programs, out = plan.work / "extras" / "bin", plan.work / "demo"
    shutil.rmtree(out, ignore_errors=True)
    if plan.demo == "quick":
        said = run(plan, "demo", [programs / "python", "-I", "-c", QUICK_DEMO, out])
    else:
        said = run(plan, "demo", [programs / "pacesetter", "demo", "--quiet", "--out", out])
    missing = [name for name in RESULTS if not (out / name).is_file()]
    if missing:
        raise ReleaseError(f"the demonstration ended without {', '.join(missing)}; it said: {said}")


def tests(plan: Plan) -> None:
    """The tests of the checkout, on the code of the wheel."""
    pytest = plan.work / "extras" / "bin" / "pytest"
    said = run(plan, "tests", [pytest, "-p", "no:cacheprovider", *plan.tests], cwd=plan.root)
    print(f"  {said.splitlines()[-1]}")


STEPS: dict[str, Callable[[Plan], None]] = {
    step.__name__: step for step in (texts, licences, build, core, extras, demo, tests)
}


def check(plan: Plan, steps: Sequence[str]) -> str | None:
    """Takes the steps in their order, up to the first that fails.

    Args:
        plan: what to check.
        steps: names out of `STEPS`.

    Returns:
        What failed and why; None where nothing did.
    """
    chosen = [(name, step) for name, step in STEPS.items() if name in steps]
    for number, (name, step) in enumerate(chosen, start=1):
        print(
            f"[{number}/{len(chosen)}] {name}: {(step.__doc__ or '').splitlines()[0]}", flush=True
        )
        try:
            step(plan)
        except (ReleaseError, OSError) as error:
            return f"step `{name}` failed: {error}"
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """The command line.

    Args:
        argv: arguments; by default those of the process.

    Returns:
        Exit code: 0 where everything passed.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for option, name in NAMED.items():
        parser.add_argument(f"--{option}", metavar="VERSION", help=f"{name} to install and test")
    parser.add_argument("--demo", choices=("full", "quick"), default="full")
    parser.add_argument("--tests", default="", metavar="ARGS", help="of pytest (default: all)")
    parser.add_argument("--steps", nargs="+", choices=tuple(STEPS), default=tuple(STEPS))
    parser.add_argument("--work", type=Path, help="folder to work in, kept (default: a new one)")
    given = parser.parse_args(argv)
    work = given.work or Path(tempfile.mkdtemp(prefix="release-check-"))
    work.mkdir(parents=True, exist_ok=True)
    plan = Plan(
        work=work.resolve(),
        versions={n: getattr(given, o) for o, n in NAMED.items() if getattr(given, o)},
        demo=given.demo,
        tests=tuple(given.tests.split()),
    )
    failure = check(plan, given.steps)
    if failure:
        print(f"release-check: {failure}\nwhat there is, is kept in {plan.work}", file=sys.stderr)
        return 1
    if set(given.steps) == set(STEPS):
        shutil.copytree(plan.work / "dist", ROOT / "dist", dirs_exist_ok=True)
        print("release-check: passed; what was checked is in dist/")
    else:
        print(f"release-check: {', '.join(given.steps)} passed")
    if given.work is None:
        shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
