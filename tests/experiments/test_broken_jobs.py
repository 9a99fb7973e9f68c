"""Own jobs that are broken, or merely unusual: refused with split, row and remedy, or run."""

import sys
import warnings
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from pacesetter.experiments.analysis.summary import summarise
from pacesetter.experiments.cli.main import main
from pacesetter.experiments.own_job import check_task, plain_task
from pacesetter.experiments.report.text import format_summary
from pacesetter.experiments.rivals.arms import Configured
from pacesetter.experiments.rivals.baselines import BASELINES
from pacesetter.experiments.runs.batched import RunOptions
from pacesetter.experiments.runs.plain import run_plain
from pacesetter.experiments.runs.records import RunRecord, mark_exploded
from pacesetter.inner_models.engine.data import build_model
from pacesetter.inner_models.engine.trainer import InnerTrainer

X = torch.randn(80, 6, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True).sin()
SCHEDULE_FREE = next(b for b in BASELINES if b.name == "schedule-free")
TOKENS = torch.arange(400).view(80, 5) % 11


def parts(*tensors):
    return tuple(tuple(t[i:j] for t in tensors) for i, j in ((0, 40), (40, 60), (60, 80)))


def net():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))


class Rows(Dataset):
    def __init__(self, row):
        self.row = row

    def __len__(self):
        return 20

    def __getitem__(self, i):
        return self.row(i)


def fails(error):
    raise error


GOOD = Rows(lambda i: (X[i], Y[i]))
UNREADABLE = {
    "row 3 of valid cannot be read: KeyError: 'b.png'": (
        "valid",
        Rows(lambda i: (X[i], Y[i] if i != 3 else fails(KeyError("b.png")))),
    ),
    "row 0 of test cannot be read: ValueError: a. Fix": (
        "test",
        Rows(lambda i: fails(ValueError("a\nb"))),
    ),
    "row 0 has .* and row 7 has": ("train", Rows(lambda i: (X[i, : 6 - i // 7], Y[i]))),
    "and row 9 has .*: pad or cut": ("test", Rows(lambda i: (X[i], Y[i])[: 2 - i // 9])),
    "row 0 of valid cannot be read: ZeroDiv": (
        "valid",
        DataLoader(GOOD, collate_fn=lambda _: 1 / 0),
    ),
    "tuple of 2 .ndarray. .torch.from_numpy": ("train", (X.numpy(), Y.numpy())),
    "a ndarray .torch.from_numpy": ("test", DataLoader(GOOD, collate_fn=lambda rows: X.numpy())),
}


@pytest.mark.parametrize("message", UNREADABLE)
def test_unreadable_rows_are_named(message):
    split, source = UNREADABLE[message]
    loaders = {**dict(zip(("train", "valid", "test"), parts(X, Y), strict=True)), split: source}
    with pytest.raises(ValueError, match=message) as caught:
        plain_task(net, loaders, nn.MSELoss())
    assert "\n" not in str(caught.value)


def labels(row, label):
    found = (X[:, 0] > 0).long()
    found[row] = label
    return found


ENTROPY, LOG = F.cross_entropy, lambda o, y: (o**2 + y.log1p()).mean()
CHECKED = {
    "failed on row 9 of train with IndexError": (2, (X, labels(9, 2)), ENTROPY),
    r"row 1 of inner_valid \(row 2 of valid\)": (2, (X, labels(42, 7)), ENTROPY),
    "must be finite at the start, but on row 33 of train it is -inf": (
        1,
        (X, torch.where(Y[33] == Y, -1.0, Y.abs())),
        LOG,
    ),
    "adds up.*reduction='mean'": (1, (X, Y), nn.MSELoss(reduction="sum")),
    "gradient of 'task' is zero": (1, (X, Y), lambda o, y: (0 * o).sum() + y.mean()),
    "": (1, (X.double(), Y.double()), nn.MSELoss()),  # as NumPy has them
}


@pytest.mark.parametrize("message", CHECKED)
def test_rows_and_losses_that_cannot_be_judged_are_refused(message):
    width, data, loss = CHECKED[message]
    task = plain_task(nn.Linear(6, width), parts(*data), loss)
    if not message:
        check_task(task)
        return
    with pytest.raises(ValueError, match=message):
        check_task(task)


SETTINGS = {
    "optimizer must be an OptimizerConfig, such as .*name='sgd'": {"optimizer": torch.optim.Adam},
    "must be an OptimizerConfig.*but got 'sgd'": {"optimizer": "sgd"},
    "horizon must be a whole number, but got '60'": {"horizon": "60"},
    "batch_size must be a whole number, but got '8'": {"batch_size": "8"},
    "seed must be a whole number, or None": {"seed": "x"},
}


@pytest.mark.parametrize("message", SETTINGS)
def test_settings_of_other_kinds_are_refused(message):
    with pytest.raises(ValueError, match=message):
        plain_task(net, parts(X, Y), nn.MSELoss(), SETTINGS[message])


class Sparse(nn.Module):
    def __init__(self, kind, sparse):
        super().__init__()
        self.sparse = sparse
        self.table = getattr(nn, kind)(11, 4, sparse=sparse, padding_idx=0)
        self.out = nn.Linear(4, 1)

    def forward(self, tokens):
        if isinstance(self.table, nn.EmbeddingBag):
            return self.out(self.table(tokens))
        return self.out(F.embedding(tokens, self.table.weight, 0, sparse=self.sparse).mean(1))


def results(task):
    """Test loss of two batched runs and outer-valid loss of one by itself, after some steps."""
    check_task(task)
    trainer = InnerTrainer([task.with_seed(0)], siblings=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one after another, where vmap cannot
        trainer.run(np.full((6, 2), 1e-2), momentum=np.full(2, 0.9))
        rival = Configured(SCHEDULE_FREE, SCHEDULE_FREE.space.default)
        alone = run_plain(task, rival, seed=0, options=RunOptions())
    return *trainer.evaluate("test"), alone.losses["outer_valid"]


@pytest.mark.parametrize("kind", ["Embedding", "EmbeddingBag"])
def test_sparse_gradients_are_those_of_dense_ones(kind):
    one, other = (
        results(
            plain_task(partial(Sparse, kind, s), parts(TOKENS, Y), nn.MSELoss(), {"horizon": 6})
        )
        for s in (True, False)
    )
    assert one == pytest.approx(other, rel=1e-6)


def lazy():
    return nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.Tanh(), nn.LazyLinear(1))


@pytest.mark.parametrize("given", [lazy, lazy()], ids=["factory", "module"])
def test_lazy_models_get_their_shapes_and_train(given):
    task = plain_task(given, parts(X, Y), nn.MSELoss(), {"horizon": 6})
    first, second, _ = results(task)
    assert first == second
    models = [build_model(task.with_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(models[0][0].weight, models[1][0].weight)
    assert torch.equal(models[0][0].weight, models[2][0].weight) == (given is not lazy)
    assert torch.equal(models[0][1].running_mean, torch.zeros(8))
    unused = plain_task(lambda: nn.ModuleList([net(), nn.LazyLinear(2)]), parts(X, Y), first_loss)
    with pytest.raises(ValueError, match=r"does not use 1.weight, 1.bias"):
        check_task(unused)


def first_loss(model, batch):
    return F.mse_loss(model[0](batch[0]), batch[1])


JOB = """
import torch
from torch import nn
def uneven(): return nn.Linear(2, 1), ((torch.ones(3, 2), torch.ones(4, 1)),) * 3, nn.MSELoss()
def odd(): return nn.Linear(2, 1), ((torch.tensor(1.0),),) * 3, nn.MSELoss(), 5
"""
SPECS = {
    "./own_odd:uneven": "in the folder of own_odd.py give own_odd:uneven",
    "/x/own_odd.py:odd": "in the folder of own_odd.py give own_odd:odd",
    "own_odd:uneven": "same positive number of rows",
    "own_odd:odd": "trying own_odd:odd failed with TypeError",
}


@pytest.mark.parametrize("spec", SPECS)
def test_the_command_line_says_it_in_one_line(spec, tmp_path, monkeypatch, capsys):
    (tmp_path / "own_odd.py").write_text(JOB)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    assert main(["compare", "--task", spec, "--out", "out", "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert SPECS[spec] in line
    sys.modules.pop("own_odd", None)


def runs(arm, *losses):
    return [
        RunRecord(
            task="a", arm=arm, seed=s, lr=1e-3, untrained=2.0, inner_steps=4, steps=[2, 4],
            losses=dict.fromkeys(("train", "outer_valid", "test"), loss), curve=[1.0, loss],
            valid_steps=[2, 4], valid_curve=[loss, loss], best={"outer_valid": loss},
        )
        for s, loss in enumerate(losses)
    ]  # fmt: skip


def summary(*records):
    return summarise(mark_exploded(records), generator=np.random.default_rng(0))


def test_a_rival_that_explodes_counts_as_diverged_and_does_not_own_the_mean():
    sound = [*runs("adamw-default", 1.0, 1.1), *runs("mild", 900.0, 1.0)]
    assert mark_exploded(sound) == sound
    wild = runs("wild", 1e27, 0.5)
    assert [r.row()["diverged"] for r in mark_exploded([*sound, *wild])] == [0, 0, 0, 0, 1, 0]
    found = summary(*sound, *wild)
    entry = found.of(wild[0].entry)
    assert entry.diverged == 1
    scores = (entry.scores["test"], entry.area, entry.best)
    assert max(score.estimate for score in scores) < 4  # no worse than the worst
    said = "wild failed on a (1 run, counted as diverged): its loss ended at 1e+27"
    assert said in format_summary(found)


DOUBTS = {
    "no run ended with": ((2.0, 2.1), (1.999, 2.5)),
    "all runs of all arms diverged": ((1e30, np.nan), (1e28, np.inf)),
    "all runs of the reference diverged": ((np.nan, 1e30), (0.5, 0.5)),
    "zero but for rounding": ((1e-13, 0.5), (0.1, 0.0)),
    "no bound below": ((-1e9, 0.5), (0.1, 0.2)),
}


@pytest.mark.parametrize("why", DOUBTS)
def test_tasks_that_cannot_be_judged_are_named(why):
    reference, rival = DOUBTS[why]
    found = summary(*runs("adamw-default", *reference), *runs("other", *rival))
    assert why in format_summary(found)
    assert not summary(*runs("adamw-default", 1.0, 1.1), *runs("other", 0.9, 0.8)).doubts
