"""Disks that are full or cannot be written: exit code 2, a line with the path, and how to go on."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pacesetter.agent.runs.folder import write_bytes
from pacesetter.experiments.cli.main import main
from pacesetter.experiments.rivals.space import Dimension
from pacesetter.experiments.tuning import Space, tune


def break_writes(monkeypatch, name, number):
    """Lets every write of one file fail, as where its disk is full."""
    fsync = os.fsync

    def broken(descriptor):
        if name in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", broken)


COMPARE = "compare --task tiny:small_task --arms do-nothing --seeds 1 --trials 1 --quiet"
TRAIN = "train --preset smoke --decisions 16 --families tiny:family --quiet"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("command", "name", "number", "begun"),
    [
        (COMPARE, "run.json", errno.EROFS, False),
        (COMPARE, "table.txt", errno.ENOSPC, True),
        (TRAIN, "checkpoint.pt", errno.ENOSPC, True),
    ],
)
def test_a_disk_that_fails_is_named_and_the_run_goes_on(
    command, name, number, begun, tmp_path, monkeypatch, capsys
):
    call = [*command.split(), "--out", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        break_writes(patch, name, number)
        assert main(call) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"pacesetter: error: {os.strerror(number)}: {tmp_path / 'out' / name}; ")
    assert line.endswith("--resume" if begun else "try again")
    assert not list((tmp_path / "out").rglob(".*.tmp"))
    assert not begun or main([*call, "--resume"]) == 0


def test_a_write_names_its_file_and_leaves_the_old_one(tmp_path, monkeypatch):
    write_bytes(tmp_path / "a", b"old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="broken") as caught:
        write_bytes(tmp_path / "a", b"new")
    assert caught.value.filename == str(tmp_path / "a")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", b"old")]


def test_the_file_of_searches_is_named(tmp_path):
    space = {"arm": Space({"lr": Dimension(1e-3, 1e-1, default=1e-2)})}
    (tmp_path / "studies.db").mkdir()
    with pytest.raises(OSError, match=r"unable to open database file.*studies.db"):
        tune(["task"], space, iter, trials=1, storage=tmp_path / "studies.db")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_standard_output_that_is_full():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pacesetter.experiments.cli.main", "compare", "--list"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "pacesetter: error: No space left on device: standard output\n"
