"""What a release check is told, and how it runs programs: apart from the checkout, with a log."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from release_files import ReleaseError

ROOT = Path(__file__).resolve().parents[1]
TAIL = 40  # lines of a failed command's output that are shown
LEAKS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "MAKEFLAGS", "MFLAGS", "MAKELEVEL")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to check, and where to work.

    Attributes:
        work: folder for environments, logs and what was built.
        versions: versions to try, by distribution.
        demo: `"full"`, as users run it, or `"quick"`: the smallest preset, 100 steps, two seeds.
        tests: arguments of pytest; none is the whole suite.
        root: the checkout.
    """

    work: Path
    versions: Mapping[str, str] = field(default_factory=dict)
    demo: str = "full"
    tests: tuple[str, ...] = ()
    root: Path = ROOT

    @property
    def wheel(self) -> Path:
        """The wheel that the step `build` made.

        Raises:
            ReleaseError: there is none.
        """
        return one_of(self.work / "dist", "*.whl")


def one_of(folder: Path, pattern: str) -> Path:
    """The only file of a pattern in a folder.

    Raises:
        ReleaseError: there is none, or more than one.
    """
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ReleaseError(f"expected one {pattern} in {folder}, found {names}: run step `build`")
    return found[0]


def run(
    plan: Plan, log: str, command: Sequence[str | Path], *, cwd: Path | None = None, code: int = 0
) -> str:
    """Runs a command apart from the environment that it is called from.

    Args:
        plan: where to work.
        log: name of the log, without a suffix.
        command: program and arguments.
        cwd: where to run it; by default the folder of the work, where no checkout is in reach.
        code: the exit code that is expected.

    Returns:
        What it printed.

    Raises:
        ReleaseError: it ended in another exit code.
    """
    path = plan.work / f"{log}.log"
    environment = {name: value for name, value in os.environ.items() if name not in LEAKS}
    words = [str(word) for word in command]
    with path.open("w", encoding="utf-8") as out:
        done = subprocess.run(
            words,
            cwd=cwd or plan.work,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            check=False,
        )
    printed = path.read_text(encoding="utf-8", errors="replace")
    if done.returncode != code:
        tail = "\n".join(printed.splitlines()[-TAIL:])
        shown = " ".join(word if "\n" not in word else "..." for word in words)
        raise ReleaseError(
            f"{shown}\nended in exit code {done.returncode}, expected {code}; its last lines "
            f"(all of them: {path}):\n{tail}"
        )
    return printed


def copy_sources(root: Path, target: Path) -> None:
    """Copies what git knows or would add, so that nothing else gets into what is built.

    Args:
        root: the checkout.
        target: a folder; it is made.

    Raises:
        ReleaseError: `root` is no git checkout.
    """
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        raise ReleaseError(f"expected a git checkout at {root}; git said: {listed.stderr.strip()}")
    for name in filter(None, listed.stdout.split("\0")):
        if (root / name).is_file():  # a file that was removed is still listed
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target / name)
