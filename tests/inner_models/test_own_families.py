"""A user's own family by its name, module:attribute: everywhere a family is named, or refused."""

import sys

import gymnasium
import pytest
import torch

from pacesetter.agent.policy.policy import Policy
from pacesetter.agent.training.meter import collect_features
from pacesetter.envs.actions import ControlConfig
from pacesetter.envs.vec_env import ScheduleVecEnv
from pacesetter.experiments.compare_config import named_task, task_names
from pacesetter.experiments.own_job import check_task
from pacesetter.inner_models import registry
from pacesetter.inner_models.task import TaskFamily

MODULE = """
import torch
from tiny import SmallFamily, small_task

class Lines(SmallFamily):
    def __init__(self, slope=None):
        self.slope = slope

steep = Lines(torch.tensor([[5.0], [5.0]]))

def drawn():
    return Lines(torch.randn(2, 1))

def one_task():
    return small_task()

def needs(something):
    return steep

def breaks():
    raise KeyError("no")

number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module in the working directory, where Python does not look by itself."""
    (tmp_path / "own_lines.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere", *sys.path])
    registry.fixed_task.cache_clear()
    yield "own_lines"
    registry.fixed_task.cache_clear()
    sys.modules.pop("own_lines", None)


@pytest.mark.parametrize("attribute", ["Lines", "steep", "drawn"])
def test_classes_values_and_functions_are_families(own, attribute):
    family = registry.make_family(f"{own}:{attribute}")
    assert isinstance(family, TaskFamily)
    check_task(family.sample(torch.Generator().manual_seed(0)))


def test_what_a_function_draws_is_the_same_everywhere(own):
    torch.manual_seed(1)
    one = registry.make_family(f"{own}:drawn").slope
    torch.manual_seed(2)
    two = registry.make_family(f"{own}:drawn").slope
    assert torch.equal(one, two)
    assert torch.initial_seed() == 2


def test_wherever_a_family_is_named(own):
    name = f"{own}:Lines"
    env = gymnasium.make("pacesetter.envs.registration:pacesetter/Schedule-v0", task=name)
    env.reset(seed=0)
    assert env.unwrapped.task.name == "tiny/line"
    venv = ScheduleVecEnv([name], num_groups=1, tasks_per_group=1, siblings=2)
    venv.reset()
    assert [task.name for task in venv.tasks] == ["tiny/line"] * 2
    policy = Policy.do_nothing(ControlConfig(num_intervals=5))
    assert collect_features(policy, [name], num_runs=4, seed=0).runs.max() == 3
    assert task_names([name], per_family=2) == (f"{name}/0", f"{name}/1")
    zero, one = (named_task(f"{name}/{i}") for i in range(2))
    assert zero.name == f"{name}/0"
    assert zero.optimizer.lr == 1e-3
    assert zero.splits.digest() != one.splits.digest()
    registry.fixed_task.cache_clear()
    assert named_task(f"{name}/0").splits.digest() == zero.splits.digest()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("own_lines.py:Lines", "named module:attribute, such as my_module:my_family"),
        (":Lines", "named module:attribute"),
        ("own_lines:Lines:x", "named module:attribute"),
        ("own_line:Lines", "no module 'own_line'.*folder of own_line.py"),
        ("own_lines:Line", "unknown task family of own_lines 'Line'; did you mean 'Lines'"),
        ("own_lines:number", "must be a TaskFamily, or a class or function .* but got a int"),
        ("own_lines:one_task", "got a ModuleTask, one task: a family draws many"),
        ("own_lines:needs", r"own_lines:needs\(\) failed with TypeError"),
        ("own_lines:breaks", r"own_lines:breaks\(\) failed with KeyError"),
        ("own_empty:Lines", "own_empty has no task family 'Lines', nor any other"),
    ],
)
def test_wrong_names_are_refused(own, tmp_path, spec, message):
    (tmp_path / "own_empty.py").write_text("number = 3\n")
    with pytest.raises(ValueError, match=message):
        registry.make_family(spec)
