"""The batched trainer against its plain twin, run by run and number by number."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from pacesetter.inner_models.engine.plain import ReferenceRun
from pacesetter.inner_models.engine.trainer import InnerTrainer
from pacesetter.inner_models.families.base import Job, Shape
from pacesetter.inner_models.families.teachers.regression import TeacherMLP, TeacherRanges
from pacesetter.inner_models.networks.mlp import MLPShape
from pacesetter.inner_models.task import OPTIMIZERS, ModuleTask, OptimizerConfig, Splits
from pacesetter.inner_models.watch.signals import window_length

STEPS = 20


def teacher_tasks(
    num_tasks=2, *, optimizer="adamw", classification=True, layer_norm=True, endless=False
):
    model = MLPShape(
        widths=(6, 8, 8, 3), activation="gelu", layer_norm=layer_norm, classification=classification
    )
    job = Job(
        num_train=70,
        batch_size=16,
        horizon=STEPS,
        optimizer=optimizer,
        weight_decay=0.1,
        endless=endless,
    )
    shape = Shape(model, job)
    # Noise-free of scale, so that one learning rate suits all tasks.
    family = TeacherMLP(TeacherRanges(eval_rows=32, loss_scale=(1.0, 1.0)))
    generator = torch.Generator().manual_seed(3)
    return [family.build(shape, generator) for _ in range(num_tasks)]


def hyperparameters(num_runs, seed=0, *, lr=3e-3):
    rng = np.random.default_rng(seed)
    return (
        lr * np.exp(rng.normal(size=(STEPS, num_runs))),
        rng.uniform(0.3, 0.95, size=(STEPS, num_runs)),
        rng.uniform(0.5, 1.5, size=(STEPS, num_runs)),
    )


def relative_difference(left, right):
    gap = sum(float((left[n] - right[n]).square().sum()) for n in left)
    return math.sqrt(gap / sum(float(right[n].square().sum()) for n in right))


RATES = {"adamw": 3e-3, "adam": 3e-3, "sgd": 3e-2, "rmsprop": 1e-3}


@pytest.mark.parametrize(
    ("optimizer", "classification", "endless"),
    [
        ("adamw", True, False),
        ("adamw", False, True),
        ("adam", False, False),
        ("sgd", True, True),
        ("sgd", False, False),
        ("rmsprop", True, False),
    ],
)
def test_batched_equals_reference_with_hyperparameters_that_change_at_every_step(
    optimizer, classification, endless
):
    lr = RATES[optimizer]
    tasks = teacher_tasks(optimizer=optimizer, classification=classification, endless=endless)
    trainer = InnerTrainer(tasks, siblings=3, dtype=torch.float64)
    rates, momenta, ratios = hyperparameters(6, lr=lr)
    for i in range(STEPS):
        trainer.run(rates[i : i + 1], momentum=momenta[i], clip_ratio=ratios[i])
    clipped = 0
    for run in range(6):
        twin = ReferenceRun(tasks[run // 3], dtype=torch.float64)
        for i in range(STEPS):
            twin.step(lr=rates[i, run], momentum=momenta[i, run], clip_ratio=ratios[i, run])
        clipped += sum(twin.clipped)
        weights = {n: p.detach() for n, p in twin.model.named_parameters()}
        assert relative_difference(trainer.parameters(run), weights) < 1e-8
        for split in ("train", "inner_valid", "outer_valid", "test"):
            assert trainer.evaluate(split)[run] == pytest.approx(twin.evaluate(split), rel=1e-9)
    assert clipped > 10  # the clipping was put to the test


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_changing_one_run_changes_no_other(optimizer):
    tasks = teacher_tasks(optimizer=optimizer)
    rates, momenta, ratios = hyperparameters(6)
    ends = []
    for factor in (1.0, 7.0):
        trainer = InnerTrainer(tasks, siblings=3)
        changed = rates.copy()
        changed[:, 4] *= factor
        for i in range(10):
            trainer.run(changed[i : i + 1], momentum=momenta[i], clip_ratio=ratios[i])
        ends.append([trainer.parameters(run) for run in range(6)])
    for run in range(6):
        same = all(torch.equal(ends[0][run][n], ends[1][run][n]) for n in ends[0][run])
        assert same == (run != 4)


def test_statistics_equal_those_of_the_plain_run():
    (task,) = teacher_tasks(1)
    trainer = InnerTrainer([task], siblings=2, dtype=torch.float64)
    stats = trainer.run(
        np.full((STEPS, 2), 1e-2), momentum=np.full(2, 0.9), clip_ratio=np.array([1.0, 1.0])
    )
    twin = ReferenceRun(task, dtype=torch.float64)
    cosines, sizes, params = [], [], []
    for i in range(STEPS):
        if i >= STEPS - window_length(STEPS):
            states = [twin.optimizer.state[p] for p in twin.model.parameters()]
            step = float(states[0]["step"])
            momentum = torch.cat([s["exp_avg"].flatten() for s in states])
            second = torch.cat([s["exp_avg_sq"].flatten() for s in states])
            update = momentum / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
            params.append(float(nn.utils.get_total_norm(list(twin.model.parameters()))))
            twin.step(lr=1e-2, momentum=0.9, clip_ratio=1.0)
            # Clipping rescales the gradient; its direction is the same before and after.
            grad = torch.cat([p.grad.flatten() for p in twin.model.parameters()])
            cosines.append(
                [
                    float(torch.cosine_similarity(grad, momentum, dim=0)),
                    float(torch.cosine_similarity(grad, update, dim=0)),
                ]
            )
            sizes.append(1e-2 * float(update.norm()))
        else:
            twin.step(lr=1e-2, momentum=0.9, clip_ratio=1.0)
    expected = {
        "loss_mean": np.mean(twin.losses),
        "loss_std": np.std(twin.losses),
        "norm_mean": np.mean(twin.norms),
        "norm_std": np.std(twin.norms),
        "clipped_share": np.mean(twin.clipped),
        "nonfinite_share": 0.0,
        "cos_momentum": np.mean([c[0] for c in cosines]),
        "cos_update": np.mean([c[1] for c in cosines]),
        "update_norm": np.mean(sizes),
        "param_norm": np.mean(params),
    }
    for name, value in expected.items():
        assert getattr(stats, name) == pytest.approx([value, value], rel=1e-7), name


def broken_task(**changes):
    """A linear model whose loss is not finite on batches that hold a poisoned row."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 4, generator=generator)
    inputs[7] = math.inf
    targets = torch.zeros(40, 1)
    part = (inputs, targets)
    clean = (inputs[:5], targets[:5])
    return ModuleTask(
        lambda: nn.Linear(4, 1),
        lambda model, batch: (model(batch[0]) - batch[1]).square().mean(),
        Splits(part, clean, clean, clean, allow_overlap=True),
        horizon=40,
        batch_size=10,
        seed=1,
        **changes,
    )


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_broken_update_is_skipped_without_advancing_the_optimizer(optimizer):
    task = broken_task(optimizer=OptimizerConfig(name=optimizer, lr=1e-2))
    trainer = InnerTrainer([task], siblings=2, dtype=torch.float64)
    stats = trainer.run(np.full((8, 2), 1e-2), momentum=np.full(2, 0.9))
    twin = ReferenceRun(task, dtype=torch.float64)
    for _ in range(8):
        twin.step(lr=1e-2, momentum=0.9)
    assert sum(twin.skipped) == 2  # two epochs of four batches, one poisoned row in each
    assert stats.nonfinite_share.tolist() == [0.25, 0.25]
    assert trainer.optimizer.steps.flatten().tolist() == [6, 6]
    weights = {n: p.detach() for n, p in twin.model.named_parameters()}
    assert relative_difference(trainer.parameters(0), weights) < 1e-8
    assert np.isfinite(stats.loss_mean).all()


def test_a_lost_run_leaves_its_siblings_alone():
    tasks = teacher_tasks(1, optimizer="sgd", classification=False, layer_norm=False)
    rates = np.full((STEPS, 2), 1e-2)
    alone = InnerTrainer(tasks, siblings=2)
    alone.run(rates, momentum=np.full(2, 0.9))
    rates[:, 1] = 1e12
    beside = InnerTrainer(tasks, siblings=2)
    beside.run(rates, momentum=np.full(2, 0.9))
    losses = beside.evaluate("outer_valid")
    assert not np.isfinite(losses[1])
    assert losses[0] == alone.evaluate("outer_valid")[0]


def module_task(build, inputs, targets, loss):
    part = (inputs, targets)
    splits = Splits(part, part, part, part, allow_overlap=True)
    return ModuleTask(build, loss, splits, horizon=20, batch_size=8, seed=5)


def test_frozen_parameters_stay_and_the_rest_learns():
    def build():
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
        model[0].requires_grad_(requires_grad=False)
        return model

    inputs = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
    task = module_task(build, inputs, inputs[:, :1], lambda m, b: (m(b[0]) - b[1]).square().mean())
    trainer = InnerTrainer([task], siblings=2)
    before = trainer.evaluate("train")
    trainer.run(np.full((20, 2), 3e-2), momentum=np.full(2, 0.9))
    assert set(trainer.parameters(0)) == {"2.weight", "2.bias"}
    assert (trainer.evaluate("train") < before).all()


def test_bad_input_is_refused_with_what_came():
    task = broken_task()
    with pytest.raises(ValueError, match="at least one task and one sibling, but got 0"):
        InnerTrainer([])
    with pytest.raises(ValueError, match="has no seed"):
        InnerTrainer([ModuleTask(task.build_model, task.loss, task.splits, horizon=5)])
    with pytest.raises(ValueError, match="must agree in"):
        InnerTrainer([task, broken_task(optimizer=OptimizerConfig(name="sgd"))])
    with pytest.raises(ValueError, match=r"lr must have shape \(steps, 1\), but got \(3, 2\)"):
        InnerTrainer([task]).run(np.ones((3, 2)), momentum=np.ones(1))
    bad = ModuleTask(task.build_model, lambda m, b: m(b[0]).sum(1), task.splits, horizon=5, seed=0)
    with pytest.raises(ValueError, match=r"must be one number.*shape \(32,\)"):
        InnerTrainer([bad]).run(np.ones((1, 1)), momentum=np.ones(1))


def test_an_error_in_the_users_loss_is_raised_as_it_is_and_without_a_warning_on_batching():
    inputs = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
    task = module_task(
        lambda: nn.Linear(4, 3), inputs, inputs[:, :1], lambda m, b: m(b[0]) @ b[0].sum()
    )
    # Warnings are errors here, so a warning would come first.
    with pytest.raises(RuntimeError, match="both arguments to matmul"):
        InnerTrainer([task], siblings=2).evaluate("train")
