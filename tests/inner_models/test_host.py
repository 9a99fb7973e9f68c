"""Settings of the whole process: made by one call, and by nothing else."""

import os
import subprocess
import sys

BEFORE = """
import os, sys, warnings
from pacesetter.inner_models.engine import host
assert "torch" not in sys.modules
def untouched():
    return "MKL_CBWR" not in os.environ and not host._keep_freed_memory.cache_info().misses
import torch, gymnasium
from torch import nn
# Gymnasium imports the module that the id names.
env = gymnasium.make("pacesetter.envs.registration:pacesetter/Schedule-v0", task="quadratic")
assert env.unwrapped.control.num_intervals == 40
import pacesetter.agent
from pacesetter.agent import LearnedScheduler
from pacesetter.envs import ScheduleVecEnv
from pacesetter.inner_models import InnerTrainer, make_family
LearnedScheduler(torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1), 100)
tasks = make_family("quadratic").sample_group(1, torch.Generator().manual_seed(0))
InnerTrainer(tasks)
ScheduleVecEnv(["quadratic"], num_groups=1, tasks_per_group=1, siblings=2)
assert untouched()
host.prepare_process()
host.prepare_process()
assert os.environ["MKL_CBWR"] == "AVX2,STRICT"
assert host._keep_freed_memory.cache_info().misses == 1
os.environ["MKL_CBWR"] = "COMPATIBLE"
host.prepare_process()
assert os.environ["MKL_CBWR"] == "COMPATIBLE"
"""


def test_only_an_explicit_call_changes_the_settings_of_the_process():
    environment = {n: v for n, v in os.environ.items() if n != "MKL_CBWR"}
    subprocess.run([sys.executable, "-c", BEFORE], check=True, env=environment, timeout=200)
