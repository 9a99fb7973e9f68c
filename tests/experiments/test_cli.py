"""The command line: help that is enough, errors without tracebacks, exit codes, the demo."""

import json
import re
import subprocess
import sys
from functools import partial
from importlib.metadata import version

import numpy as np
import pytest

from pacesetter.agent.policy.policy import Policy, save_policy
from pacesetter.agent.runs.folder import claim_folder
from pacesetter.envs.features import FEATURE_NAMES, NUM_FEATURES
from pacesetter.experiments import comparison as compare
from pacesetter.experiments import demo
from pacesetter.experiments.cli import compare as cli_compare
from pacesetter.experiments.cli import main as cli
from pacesetter.experiments.demo import DemoConfig, digits_records, run_demo
from pacesetter.experiments.runs.records import Entry
from pacesetter.inner_models.registry import SETS

COMMANDS = ("train", "compare", "inspect", "export", "demo", "completion")


def failure(capsys, *argv, code=2):
    """The message of a command that has to fail as a user's error."""
    assert cli.main([str(a) for a in argv]) == code
    said = capsys.readouterr()
    assert said.err.startswith("pacesetter: error: ")
    assert "Traceback" not in said.err
    assert said.out == ""
    return said.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_enough(capsys, command):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.index("examples:") < text.index("options:")
    _, codes = text.split("exit codes:\n")
    assert [int(line.split()[0]) for line in codes.splitlines()] == [0, 1, 2, 3, 130]
    # Every option is explained on its own line or the next.
    for entry in re.split(r"\n  (?=-)", text)[1:]:
        assert len(entry.split()) > 3, entry


def test_the_first_page_has_every_command_and_the_version(capsys):
    for option, words in (("--version", [version("pacesetter")]), ("--help", COMMANDS)):
        with pytest.raises(SystemExit):
            cli.main([option])
        assert set(words) <= set(capsys.readouterr().out.split())


def test_examples_in_help_can_be_parsed():
    parser = cli.make_parser()
    for text in cli._EXAMPLES.values():
        for line in re.findall(r"^  pacesetter (.*)$", text.replace("\\\n", ""), re.MULTILINE):
            parser.parse_args(re.split(r"\s{3,}(?![\s-])| > ", line)[0].split())


@pytest.mark.parametrize("argv", [[], ["fly"], ["compare", "--seeds", "x", "--out", "y"]])
def test_wrong_arguments_exit_with_2(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2
    assert "--help` tells more" in capsys.readouterr().err


def test_user_errors(capsys, tmp_path, policy_file):
    out = tmp_path / "out"
    train = ("train", "--preset", "smoke", "--out", out)
    given = ("compare", "--policy", policy_file, "--out", out)
    missing = tmp_path / "none.safetensors"
    for argv, message in (
        ((*train, "--preset", "laptpo"), "did you mean 'laptop'"),
        ((*train, "--device", "warp"), "device 'warp'"),
        ((*given, "--trials", 0), "trials must be positive"),
        ((*given, "--start-lrs", "1e-3,fast"), "--start-lrs must be numbers"),
        ((*given, "--task", "my_job"), "module:function"),
        ((*given, "--resume"), "--resume"),
        ((*given, "--policy", missing), str(missing)),
    ):
        assert message in failure(capsys, *argv)
    assert not out.exists()
    policy_file.write_bytes(policy_file.read_bytes()[:100])
    failure(capsys, "inspect", policy_file)
    assert cli.main(["inspect", str(missing), "--debug"]) == 2
    assert re.search("Traceback.*FileNotFoundError", capsys.readouterr().err, re.DOTALL)


@pytest.mark.parametrize(
    ("module", "extra", "argv"),
    [
        ("stable_baselines3", "train", ["train", "--preset", "smoke"]),
        ("matplotlib", "compare", ["compare"]),
        ("shtab", "completion", ["completion", "zsh"]),
    ],
)
def test_missing_extra_names_the_line_that_installs_it(
    module, extra, argv, capsys, tmp_path, monkeypatch
):
    for name in [n for n in sys.modules if n.partition(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, module, None)
    out = () if module == "shtab" else ("--out", tmp_path / "out")
    message = failure(capsys, *argv, *out, code=3)
    assert module in message
    assert f"pip install 'pacesetter[{extra}]'" in message


def test_inspect(capsys, policy, policy_file):
    assert cli.main(["inspect", str(policy_file)]) == 0
    text = capsys.readouterr().out
    assert policy.digest in text
    assert "1,234 decisions" in text
    assert cli.main(["inspect", str(policy_file), "--json"]) == 0
    header = json.loads(capsys.readouterr().out)
    assert header["control"]["num_intervals"] == 5
    assert header["layer_sizes"] == [NUM_FEATURES, 3]


def test_inspect_shows_response_curves(capsys, tmp_path):
    weight = np.zeros((3, NUM_FEATURES))
    weight[0, FEATURE_NAMES.index("cos_update")] = 0.2
    path = save_policy(Policy([(weight, np.zeros(3))]), tmp_path / "p.safetensors")
    table, picture = tmp_path / "new" / "curves.csv", tmp_path / "new" / "curves.png"
    given = ["inspect", str(path), "--csv", str(table), "--plot", str(picture)]
    assert cli.main(given) == 0
    lines = capsys.readouterr().out.partition("response curves")[2].splitlines()
    # The strongest comes first. Cosines from -1 to 1 are features from -1.25 / 0.3 to 0.75 / 0.3.
    assert lines[3].split()[:6] == ["cos_update", "-1", "1", "-0.83", "+0.50", "1.33"]
    assert table.read_text().splitlines()[0].startswith("feature,value,log_lr")
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_export_for_other_runtimes(capsys, tmp_path, policy_file):
    pytest.importorskip("onnxruntime")
    argv = ("export", policy_file, "--format")
    for kind, name in (("onnx", "p.onnx"), ("torch", "p.pt2"), ("policy", "p.safetensors")):
        assert cli.main([*map(str, argv), kind, "--out", str(tmp_path / "out" / name)]) == 0
        assert (tmp_path / "out" / name).stat().st_size > 0
    capsys.readouterr()
    assert ".pt2" in failure(capsys, *argv, "torch", "--out", tmp_path / "x")


def test_export(capsys, tmp_path, policy_file):
    target = tmp_path / "own" / "mine.safetensors"
    argv = ["export", str(tmp_path), "--out", str(target)]
    assert cli.main(argv) == 0
    assert target.read_bytes() == policy_file.read_bytes()
    capsys.readouterr()
    assert "--force" in failure(capsys, *argv)
    assert cli.main([*argv, "--force"]) == 0
    capsys.readouterr()
    for source, out, message in (
        (target.parent, "x", "no policy yet"),
        (tmp_path / "none", "x", "neither a policy file nor a folder"),
        (tmp_path, "own", "is a folder"),
    ):
        assert message in failure(capsys, "export", source, "--out", tmp_path / out)


def test_train_passes_on_its_arguments_and_says_how_it_went(capsys, tmp_path, policy, monkeypatch):
    from pacesetter.agent.training import train as ppo
    from pacesetter.experiments.presets import get_preset

    calls = []

    def train(config, out, **options):
        calls.append((config, out, options))
        (out / "validation.csv").write_text("rollout,decisions,mean_log_ratio\n0,0,-0.1\n3,9,0.2\n")
        return save_policy(policy, out / "policy.safetensors")

    monkeypatch.setattr(ppo, "train", train)
    given = ["train", "--preset", "smoke", "--out", str(tmp_path), "--seed", "7", "--resume"]
    assert cli.main([*given, "--json"]) == 0
    ((config, out, options),) = calls
    assert (config, out) == (get_preset("smoke"), tmp_path)
    assert (options["seed"], options["resume"], options["preset"]) == (7, True, "smoke")
    expected = {"families": ["digits-mlp"], "scores": [-0.1, 0.2], "best": -0.1}
    assert json.loads(capsys.readouterr().out)["validation"] == expected
    assert cli.main([*given, "--init", "default"]) == 0
    assert "nothing better was found" in capsys.readouterr().out


OWN_JOB = """
from torch import nn
import torch

def make_task(seed):
    x = torch.randn(90, 3)
    parts = [(p, p.sum(1, keepdim=True)) for p in x.split(30)]
    return (lambda: nn.Linear(3, 1)), parts, nn.MSELoss()
"""


def test_compare_on_a_job_of_ones_own(capsys, tmp_path, policy_file, monkeypatch):
    (tmp_path / "cli_own_job.py").write_text(OWN_JOB)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    argv = ["compare", "--policy", str(policy_file), "--out", "out", "--quiet", "--seeds", "1"]
    argv += ["--arms", "policy", "adamw-cosine", "--trials", "2", "--steps", "20", "--task"]
    try:
        assert cli.main([*argv, "cli_own_job:make_task", "--json"]) == 0
        said = capsys.readouterr()
        assert said.err == ""
        rows = (tmp_path / "out" / "results.csv").read_text().splitlines()[1:]
        assert {row.split(",")[0] for row in rows} == {"cli_own_job/make_task"}
        assert len(rows) == 4  # policy, default, and cosine with two budgets
        argv = [*argv, "cli_own_job:make_task", "--resume", "--steps", "30"]
        assert "steps: 20 then, 30 now" in failure(capsys, *argv)
    finally:
        sys.modules.pop("cli_own_job", None)
    found = json.loads(said.out)
    assert (tmp_path / "out" / "report.html").samefile(found["report"])
    assert "--task cli_own_job:make_task" in (tmp_path / "out" / "report.html").read_text()
    assert {path.suffix for path in (tmp_path / "out" / "figures").iterdir()} == {".svg", ".png"}
    scores = {arm["arm"]: arm["scores"]["test"]["estimate"] for arm in found["arms"]}
    assert scores["adamw-default"] == 0.0
    assert f"{scores['policy']:+.3f}" in (tmp_path / "out" / "table.txt").read_text()
    assert found["arms"][0]["scores"]["test"]["low"] is None  # one run has no interval


def parsed(*argv):
    args = cli.make_parser().parse_args(["compare", "--out", "x", *argv])
    return cli_compare.config_of(args)


def test_compare_settings_from_arguments():
    assert parsed() == compare.CompareConfig()
    assert parsed(
        *("--tasks", "digits-mlp/1,tabular-mlp/0", "photo-denoiser/2", "--arms", "policy"),
        *("--seeds", "7", "--trials", "9", "--start-lrs", "1e-4,1e-2", "--start-lr", "0.1"),
        *("--jobs", "3", "--seed", "5"),
    ) == compare.CompareConfig(
        tasks=("digits-mlp/1", "tabular-mlp/0", "photo-denoiser/2"),
        arms=("policy",),
        start_lrs=(1e-4, 1e-2, 0.1),
        **{"num_seeds": 7, "trials": 9, "jobs": 3, "seed": 5},
    )
    config = parsed("--task", "my_module:make", "--tasks", "digits-mlp/0")
    assert (config.own_tasks, config.tasks) == (("my_module:make",), ("digits-mlp/0",))


def test_quick_look_is_small_and_says_what_it_leaves_out():
    config = parsed("--quick")
    assert config.quick
    whole = parsed()
    assert len(config.tasks) < len(whole.tasks)
    assert set(config.arms) < set(whole.arms)
    assert config.num_seeds < whole.num_seeds
    assert config.trials < whole.trials
    said = cli_compare.left_out(config).replace(",", "").split("without")[1].rstrip(".").split()
    assert set(whole.arms) & set(said) == set(whole.arms) - set(config.arms)
    own = parsed("--quick", "--arms", "population", "--trials", "20", "--seeds", "9")
    assert (own.arms, own.trials, own.num_seeds) == (("population",), 20, 9)


def test_list_names_all_arms_and_families(capsys):
    from pacesetter.experiments.rivals.baselines import arm_names
    from pacesetter.inner_models.registry import family_names

    assert cli.main(["compare", "--list"]) == 0
    words = capsys.readouterr().out.split()
    assert {*arm_names(), *family_names()} <= set(words)
    assert "--out DIR" in failure(capsys, "compare")


LIGHT = """
import contextlib, sys
from pacesetter.experiments.cli.main import main
with contextlib.suppress(SystemExit):
    main(sys.argv[1:])
print(*{m.partition(".")[0] for m in sys.modules}, file=sys.stderr)
"""


@pytest.mark.parametrize("argv", [["--help"], ["compare", "--list"]])
def test_help_and_lists_need_no_heavy_package(argv):
    command = [sys.executable, "-c", LIGHT, *argv]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout
    assert not {"torch", "optuna", "matplotlib", "sklearn", "gymnasium"} & set(done.stderr.split())


def test_all_commands_know_the_same_sets_of_families():
    from pacesetter.experiments.cli.train import config_of

    parser = cli.make_parser()
    for name, families in SETS.items():
        for option in ("--tasks", "--families"):
            tasks = parsed(option, name).tasks
            assert tuple(dict.fromkeys(task.partition("/")[0] for task in tasks)) == families
        args = parser.parse_args(["train", "--out", "x", "--families", name])
        assert config_of(args, None).families == families


def test_ctrl_c_says_how_to_go_on(capsys, tmp_path, policy_file, monkeypatch):
    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "compare", stopped)
    argv = ["compare", "--policy", str(policy_file), "--out", str(tmp_path / "out")]
    assert cli.main(argv) == 130
    assert "stopped" in capsys.readouterr().err
    claim_folder(tmp_path / "out", kind="compare", settings={}, resume=False)
    assert cli.main(argv) == 130
    assert f"pacesetter {' '.join(argv)} --resume" in capsys.readouterr().err


def test_digits_job_is_paired_and_honest(policy):
    config = DemoConfig(steps=50, num_seeds=2, lrs=(1e-3, 1e-2))
    records = digits_records(config, {demo.TRAINED: policy})
    names = ("adamw-default", "adamw-cosine")
    assert {r.entry for r in records} == {Entry("demo-policy", 1e-3), *map(Entry, names)}
    for seed in (0, 1):
        rows = [r for r in records if r.seed == seed]
        assert len({r.untrained for r in rows}) == 1
    cosine = next(r for r in records if r.arm == "adamw-cosine")
    assert (cosine.lr, cosine.trials, cosine.inner_steps) == (1e-2, 2, 50 * (1 + 4))
    assert cosine.lrs[0] > 50 * cosine.lrs[-1]
    ours = next(r for r in records if r.arm == "demo-policy")
    assert ours.losses["test"] < ours.untrained
    assert np.isfinite(ours.clip_thresholds[-1])


@pytest.mark.slow
def test_demo_from_start_to_report(capsys, tmp_path, policy, monkeypatch):
    from pacesetter.agent.training import train as ppo

    small = partial(DemoConfig, steps=20, num_seeds=2, lrs=(1e-2,))
    monkeypatch.setattr(
        ppo, "train", lambda config, out, **_: save_policy(policy, out / "policy.safetensors")
    )
    monkeypatch.setattr(demo, "DemoConfig", small)
    out = tmp_path / "demo"
    assert cli.main(["demo", "--out", str(out), "--quiet"]) == 0
    assert "tuned AdamW cosine" in capsys.readouterr().out
    assert "pacesetter demo --out" in (out / "report.html").read_text()
    assert "already holds files" in failure(capsys, "demo", "--out", out)
    assert cli.main(["demo", "--out", str(out), "--quiet", "--force", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"demo-policy", "adamw-default"} <= {arm["arm"] for arm in found["arms"]}


def test_force_spares_what_is_no_demonstration(tmp_path):
    claim_folder(tmp_path / "own", kind="train", settings={}, resume=False)
    with pytest.raises(FileExistsError):
        run_demo(DemoConfig(), tmp_path / "own", say=print, force=True)
    assert (tmp_path / "own" / "run.json").is_file()
