"""Out of memory: how many runs would fit is found out and said."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pacesetter.inner_models.engine.program import is_out_of_memory, out_of_memory
from pacesetter.inner_models.engine.trainer import InnerTrainer
from pacesetter.inner_models.task import ModuleTask, Splits


def make_task(seed, build=lambda: nn.Linear(4, 2)):
    generator = torch.Generator().manual_seed(seed)
    parts = [(torch.randn(20, 4, generator=generator),) for _ in range(4)]
    splits = Splits(*parts)
    return ModuleTask(build, mean_square, splits, horizon=20, batch_size=4, seed=seed)


def mean_square(model, batch):
    return model(batch[0]).square().mean()


@pytest.mark.parametrize(
    ("num_tasks", "siblings", "most", "message"),
    [
        (4, 4, 11, "16 runs side by side; 8 would fit"),  # whole tasks of four runs
        pytest.param(16, 1, 11, "16 runs side by side; 11 would", marks=pytest.mark.slow),
        (2, 2, 0, "not even one would fit: lower the batch"),
    ],
)
def test_the_number_of_runs_that_fit_is_named(monkeypatch, num_tasks, siblings, most, message):
    real = InnerTrainer._step

    def small_device(self, *args):
        if self.num_runs > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        real(self, *args)

    monkeypatch.setattr(InnerTrainer, "_step", small_device)
    trainer = InnerTrainer([make_task(seed) for seed in range(num_tasks)], siblings=siblings)
    runs = num_tasks * siblings
    with pytest.raises(torch.OutOfMemoryError, match=message):
        trainer.run(np.full((2, runs), 1e-3), momentum=np.full(runs, 0.9))


def test_an_error_of_another_kind_is_left_as_it_is():
    def boom(num_runs):
        raise RuntimeError("something else")

    assert not is_out_of_memory(RuntimeError("something else"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    error = out_of_memory(MemoryError(), num_runs=8, attempt=boom)
    assert "not even one" in str(error)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory by RLIMIT_AS")
def test_a_host_without_memory_says_how_many_runs_fit():
    code = """
import resource, torch, numpy as np
from torch import nn
from pacesetter.inner_models import InnerTrainer
from test_memory import make_task

torch.set_num_threads(1)
task = make_task(0, lambda: nn.Linear(4, 250_000))
InnerTrainer([task]).run(np.ones((1, 1)), momentum=np.ones(1) * 0.9)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 10**9, used + 10**9))
# 5 MB of weights each, and several times that.
InnerTrainer([task], siblings=400).run(np.ones((1, 400)), momentum=np.ones(400) * 0.9)
"""
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    failed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=here, timeout=200
    )
    found = re.search(r"with 400 runs side by side; (\d+) would fit", failed.stderr)
    assert found, failed.stderr
    assert 2 <= int(found[1]) <= 100
