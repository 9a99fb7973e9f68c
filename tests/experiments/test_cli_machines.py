"""What scripts rely on: one JSON object, exit codes, calm logs, and a shell that completes."""

import errno
import io
import json
import shutil
import subprocess
import sys

import pytest

from pacesetter.agent.policy import policy as policies
from pacesetter.agent.runs import progress
from pacesetter.agent.runs.progress import progress_bar
from pacesetter.experiments.cli import main as cli


def answer(capsys, *argv, code=0):
    """The JSON object of a command, which is all that it prints to standard output."""
    assert cli.main([*map(str, argv), "--json"]) == code
    found = json.loads(capsys.readouterr().out)
    assert (found["command"], found["exit_code"]) == (argv[0], code)
    return found


def test_commands_as_json(capsys, tmp_path, policy, policy_file):
    found = answer(capsys, "export", policy_file, "--out", tmp_path / "x.safetensors")
    assert found["sha256"] == policy.digest
    assert answer(capsys, "inspect", policy_file)["sha256"] == policy.digest


def test_what_others_print_does_not_spoil_the_json(capsys, tmp_path, monkeypatch):
    (tmp_path / "printing_family.py").write_text("print('hello from the module')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    argv = ["train", "--families", "printing_family:Own", "--out", str(tmp_path / "out"), "--json"]
    assert cli.main(argv) == 2
    said = capsys.readouterr()
    assert "hello from the module" in said.err
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--json"])
    assert stop.value.code == 2
    for text, message in ((said.out, "no task family 'Own'"), (capsys.readouterr().out, "--out")):
        found = json.loads(text)
        assert found["exit_code"] == 2
        assert message in found["error"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("no"), 2),
        (ImportError("no"), 3),
        (OSError(errno.ENOSPC, "no space"), 2),
        (OSError(errno.ECONNREFUSED, "refused"), 1),
        (RuntimeError("no"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(capsys, monkeypatch, error, code):
    def load_policy(name):
        raise error

    monkeypatch.setattr(policies, "load_policy", load_policy)
    assert cli.main(["inspect"]) == code
    assert ("Traceback" in capsys.readouterr().err) == (code == 1)
    found = answer(capsys, "inspect", code=code)
    assert ("stopped" in found) if code == 130 else found["error"]


def test_a_reader_that_has_seen_enough(policy_file):
    """As `pacesetter inspect | head -1` does: no complaint."""
    command = [sys.executable, "-m", "pacesetter.experiments.cli.main", "inspect", str(policy_file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_a_bar_in_a_terminal_and_elsewhere_lines_now_and_then(monkeypatch):
    def shown(stream, **options):
        with progress_bar("learning", total=1000, unit="steps", stream=stream, **options) as bar:
            bar.set_postfix_str("all is well", refresh=False)
            for _ in range(4):
                bar.update(200)
        return stream.getvalue()

    for seconds, lines in ((0.0, 4), (3600.0, 1)):
        monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", seconds)
        said = shown(io.StringIO(), shown=True, done=200)
        assert "\r" not in said
        assert len(said.splitlines()) == lines
        assert said.splitlines()[-1].startswith("learning: 1000 of 1000 steps (100%)")
    assert shown(io.StringIO(), shown=False) == ""
    said = shown(Terminal(), shown=True, done=200)
    assert all(text in said for text in ("\r", "1000/1000", "all is well"))


def completed(script, *words):
    """What bash offers for the last word of a command line."""
    code = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
    code += 'COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}; '
    code += 'f=$(complete -p pacesetter | sed "s/.*-F \\([^ ]*\\).*/\\1/"); "$f"; '
    code += 'printf "%s\\n" "${COMPREPLY[@]}"'
    command = ["bash", "-c", code, "bash", str(script), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_options_and_names(tmp_path, capsys):
    assert cli.main(["completion", "bash"]) == 0
    script = tmp_path / "completion.sh"
    script.write_text(capsys.readouterr().out)
    assert completed(script, "pacesetter", "co") == {"compare", "completion"}
    assert completed(script, "pacesetter", "train", "--preset", "w") == {"workstation"}
    assert {"teacher-mlp"} <= completed(script, "pacesetter", "train", "--families", "te")


@pytest.mark.parametrize("shell", cli.SHELLS)
def test_scripts_for_all_shells_name_all_commands(shell, capsys):
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in ("train", "compare", "inspect", "export", "demo"))
    if shutil.which(shell) and shell != "tcsh":
        subprocess.run([shell, "-n"], input=script, text=True, check=True)
