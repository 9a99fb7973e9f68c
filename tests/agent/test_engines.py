"""Where work is done: what can be said of Ray's engine without starting Ray."""

import json
import socket
import subprocess
import sys

import pytest

from pacesetter.agent.training.engines import RayEngine
from pacesetter.envs.ray.workers import Workers
from pacesetter.experiments.cli.main import MISSING_PACKAGE, WRONG_INPUT, main, make_parser
from pacesetter.experiments.cli.train import config_of


def test_numbers_out_of_range_are_refused():
    half = RayEngine(gpus_per_worker=0.5)
    both = "needs both --device cuda and --gpus-per-worker"
    for refused, message in (
        (lambda: RayEngine(workers=0), "workers must be a positive number, but got 0"),
        (lambda: RayEngine(threads=-1), "threads of workers must be positive, but got -1"),
        (lambda: Workers(count=1, gpus=1.5), r"whole ones, but gpus is 1\.5"),
        (lambda: RayEngine(patience=0), "patience with workers must be a positive number"),
        (lambda: half.check_device("cuda:1"), "chooses the GPU of a worker: give cuda, not cuda:1"),
        (lambda: RayEngine().check_device("cuda"), both),
        (lambda: half.check_device("cpu"), both),
    ):
        with pytest.raises(ValueError, match=message):
            refused()
    half.check_device("cuda")


def test_an_address_where_no_cluster_is_is_refused_at_once():
    pytest.importorskip("ray", reason="needs Ray: pip install 'pacesetter[ray]'")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        refused = f"no Ray cluster at {address}: .*refused.* Start one with `ray start --head`"
        with pytest.raises(ValueError, match=refused), RayEngine(address=address).opened():
            pass
    for address in ("head", "head:port", "ray://head:10001", ":6379", "head:65536"):
        wrong = f"expected the address of a Ray cluster, host:port .* but got '{address}'"
        with pytest.raises(ValueError, match=wrong), RayEngine(address=address).opened():
            pass


def test_options_of_engines(tmp_path, monkeypatch, capsys):
    out = str(tmp_path / "run")
    for command in ("train", "compare"):
        assert main([command, "--workers", "2", "--out", out]) == WRONG_INPUT
        assert "--workers is of use with --engine ray only" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    for command in ("train", "compare"):
        assert main([command, "--engine", "ray", "--out", out]) == MISSING_PACKAGE
        assert "pip install 'pacesetter[ray]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    given = ["train", "--preset", "smoke", "--out", "x"]
    usual, wide = (
        config_of(make_parser().parse_args([*given, *more]), None)
        for more in ([], ["--groups", "6"])
    )
    assert wide.env.num_envs == 3 * usual.env.num_envs


def test_without_the_engine_nothing_of_ray_is_imported_and_a_comparison_needs_no_learner():
    code = (
        "import json, sys\n"
        "def loaded(): return {name.split('.')[0] for name in sys.modules}\n"
        "import pacesetter.experiments.cli.main, pacesetter.experiments.comparison\n"
        "first = loaded()\n"
        "import pacesetter.agent.training.engines, pacesetter.agent.training.train\n"
        "import pacesetter.envs.ray.vec_env\n"
        "print(json.dumps([sorted(first), sorted(loaded())]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    compared, trained = json.loads(done.stdout)
    assert "optuna" not in compared  # not before it is needed
    assert "stable_baselines3" not in compared
    assert "stable_baselines3" in trained
    assert "ray" not in trained
