"""Out of memory: how many runs would fit is found out and said."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from pacesetter.inner_models.engine.program import is_out_of_memory, out_of_memory
from pacesetter.inner_models.engine.trainer import InnerTrainer
from pacesetter.inner_models.task import ModuleTask, Splits


def make_tasks(count, build):
    tasks = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        parts = [(torch.randn(20, 4, generator=generator),) for _ in range(4)]
        tasks.append(
            ModuleTask(build, mean_square, Splits(*parts), horizon=20, batch_size=4, seed=seed)
        )
    return tasks


def mean_square(model, batch):
    return model(batch[0]).square().mean()


@pytest.mark.parametrize(
    ("num_tasks", "siblings", "fits"), [(4, 4, 8), pytest.param(16, 1, 11, marks=pytest.mark.slow)]
)
def test_the_number_of_runs_that_fit_is_named(monkeypatch, num_tasks, siblings, fits):
    most = 11  # which is not a whole number of tasks of four runs
    real = InnerTrainer._step

    def small_device(self, *args):
        if self.num_runs > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        real(self, *args)

    monkeypatch.setattr(InnerTrainer, "_step", small_device)
    trainer = InnerTrainer(make_tasks(num_tasks, lambda: nn.Linear(4, 2)), siblings=siblings)
    with pytest.raises(torch.OutOfMemoryError, match=rf"16 runs side by side; {fits} would fit"):
        trainer.run(np.full((2, 16), 1e-3), momentum=np.full(16, 0.9))


def test_not_even_one_fits_is_said_too(monkeypatch):
    def no_device(self, *args):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(InnerTrainer, "_step", no_device)
    trainer = InnerTrainer(make_tasks(2, lambda: nn.Linear(4, 2)), siblings=2)
    with pytest.raises(torch.OutOfMemoryError, match="not even one would fit: lower the batch"):
        trainer.run(np.full((2, 4), 1e-3), momentum=np.full(4, 0.9))


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
import resource, warnings, torch
from torch import nn
from pacesetter.inner_models.task import ModuleTask, Splits
from pacesetter.inner_models.engine.trainer import InnerTrainer
import numpy as np

torch.set_num_threads(1)
parts = [(torch.randn(20, 100, generator=torch.Generator().manual_seed(i)),) for i in range(4)]
task = ModuleTask(
    lambda: nn.Linear(100, 10000), lambda m, b: m(b[0]).square().mean(), Splits(*parts),
    horizon=20, batch_size=4, seed=0,
)
one = InnerTrainer([task]).run(np.ones((1, 1)), momentum=np.ones(1) * 0.9)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 10**9, used + 10**9))
try:
    trainer = InnerTrainer([task], siblings=400)  # 4 MB of weights each, and several times that
    trainer.run(np.ones((1, 400)), momentum=np.ones(400) * 0.9)
except torch.OutOfMemoryError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=200
    )
    found = re.search(r"with 400 runs side by side; (\d+) would fit", done.stdout)
    assert found, done.stdout + done.stderr
    assert 2 <= int(found[1]) <= 100
