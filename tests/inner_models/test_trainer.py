"""The batched trainer against its plain twin, run by run and number by number."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pacesetter.inner_models.engine.plain import ReferenceRun
from pacesetter.inner_models.engine.trainer import InnerTrainer
from pacesetter.inner_models.families.base import Job, Shape
from pacesetter.inner_models.families.teachers.regression import TeacherMLP, TeacherRanges
from pacesetter.inner_models.networks.mlp import MLPShape
from pacesetter.inner_models.task import OPTIMIZERS, SPLITS, ModuleTask, OptimizerConfig, Splits
from pacesetter.inner_models.watch.signals import window_length
from tiny import squared_error

STEPS = 20


def teacher_tasks(num_tasks=2, *, classification=True, **job):
    model = MLPShape(
        widths=(6, 8, 8, 3), activation="gelu", layer_norm=True, classification=classification
    )
    shape = Shape(model, Job(num_train=70, batch_size=16, horizon=STEPS, weight_decay=0.1, **job))
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


def assert_weights_of(twin, weights):
    wanted = {n: p.detach() for n, p in twin.model.named_parameters()}
    gap = sum(float((weights[n] - wanted[n]).square().sum()) for n in weights)
    assert math.sqrt(gap / sum(float(w.square().sum()) for w in wanted.values())) < 1e-8


@pytest.mark.parametrize(
    ("optimizer", "lr", "classification", "endless"),
    [
        ("adamw", 3e-3, True, False),
        ("adamw", 3e-3, False, True),
        ("adam", 3e-3, False, False),
        ("sgd", 3e-2, True, True),
        ("rmsprop", 1e-3, True, False),
    ],
)
def test_batched_equals_reference_with_hyperparameters_that_change_at_every_step(
    optimizer, lr, classification, endless
):
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
        assert_weights_of(twin, trainer.parameters(run))
        for split in SPLITS:
            assert trainer.evaluate(split)[run] == pytest.approx(twin.evaluate(split), rel=1e-9)
    assert clipped > 10  # the clipping was put to the test


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_changing_or_losing_one_run_changes_no_other(optimizer):
    tasks = teacher_tasks(optimizer=optimizer)
    rates, momenta, ratios = hyperparameters(6)
    ends = []
    for factor in (1.0, 7.0, 1e40):
        trainer = InnerTrainer(tasks, siblings=3)
        changed = rates.copy()
        changed[:, 4] *= factor
        for i in range(10):
            trainer.run(changed[i : i + 1], momentum=momenta[i], clip_ratio=ratios[i])
        ends.append(trainer.evaluate("outer_valid"))
    for end in ends[1:]:
        assert ((end == ends[0]) == (np.arange(6) != 4)).all()
    assert np.isnan(ends[2][4]) or ends[2][4] == math.inf


def test_statistics_equal_those_of_the_plain_run():
    (task,) = teacher_tasks(1)
    trainer = InnerTrainer([task], siblings=2, dtype=torch.float64)
    stats = trainer.run(
        np.full((STEPS, 2), 1e-2), momentum=np.full(2, 0.9), clip_ratio=np.array([1.0, 1.0])
    )
    twin = ReferenceRun(task, dtype=torch.float64)
    window = []
    for i in range(STEPS):
        states = [twin.optimizer.state[p] for p in twin.model.parameters()]
        if i >= STEPS - window_length(STEPS):
            momentum = torch.cat([s["exp_avg"].flatten() for s in states])
            second = torch.cat([s["exp_avg_sq"].flatten() for s in states])
            update = momentum / (1 - 0.9**i) / ((second / (1 - 0.999**i)).sqrt() + 1e-8)
            param_norm = float(nn.utils.get_total_norm(list(twin.model.parameters())))
        twin.step(lr=1e-2, momentum=0.9, clip_ratio=1.0)
        if i >= STEPS - window_length(STEPS):
            # Clipping rescales the gradient; its direction is the same before and after.
            grad = torch.cat([p.grad.flatten() for p in twin.model.parameters()])
            cosines = [float(torch.cosine_similarity(grad, d, dim=0)) for d in (momentum, update)]
            window.append((*cosines, 1e-2 * float(update.norm()), param_norm))
    names = ("cos_momentum", "cos_update", "update_norm", "param_norm")
    expected = {
        **dict(zip(names, np.mean(window, axis=0), strict=True)),
        "loss_mean": np.mean(twin.losses),
        "loss_std": np.std(twin.losses),
        "norm_mean": np.mean(twin.norms),
        "norm_std": np.std(twin.norms),
        "clipped_share": np.mean(twin.clipped),
        "nonfinite_share": 0.0,
    }
    for name, value in expected.items():
        assert getattr(stats, name) == pytest.approx([value, value], rel=1e-7), name


def linear_task():
    """A linear model whose loss is not finite on batches that hold a poisoned row."""
    inputs = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    inputs[7] = math.inf
    part = (inputs, torch.zeros(40, 1))
    splits = Splits(part, part, part, part, allow_overlap=True)
    options = {"horizon": 20, "batch_size": 10, "seed": 5}
    return ModuleTask(lambda: nn.Linear(4, 1), squared_error, splits, **options)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_broken_update_is_skipped_without_advancing_the_optimizer(optimizer):
    task = replace(linear_task(), optimizer=OptimizerConfig(name=optimizer, lr=1e-2))
    trainer = InnerTrainer([task], siblings=2, dtype=torch.float64)
    stats = trainer.run(np.full((8, 2), 1e-2), momentum=np.full(2, 0.9))
    twin = ReferenceRun(task, dtype=torch.float64)
    for _ in range(8):
        twin.step(lr=1e-2, momentum=0.9)
    assert sum(twin.skipped) == 2  # two epochs of four batches, one poisoned row in each
    assert stats.nonfinite_share.tolist() == [0.25, 0.25]
    assert trainer.optimizer.steps.flatten().tolist() == [6, 6]
    assert_weights_of(twin, trainer.parameters(0))
    assert np.isfinite(stats.loss_mean).all()


TASK = linear_task()
ROWWISE = replace(TASK, loss=lambda m, b: m(b[0]).sum(1))


TASK = linear_task()
OTHER = replace(TASK, optimizer=OptimizerConfig(name="sgd"))
ROWWISE = replace(TASK, loss=lambda m, b: m(b[0]).sum(1))


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([], "at least one task and one sibling, but got 0"),
        ([replace(TASK, seed=None)], "has no seed"),
        ([TASK, OTHER], "must agree in"),
        ([TASK], r"lr must have shape \(steps, 1\), but got \(3, 2\)"),
        ([ROWWISE] * 2, r"must be one number.*shape \(10,\)"),
    ],
)
def test_bad_input_is_refused_with_what_came(tasks, message):
    with pytest.raises(ValueError, match=message):
        InnerTrainer(tasks).run(np.ones((3, 2)), momentum=np.ones(2))


def test_an_error_in_the_users_loss_is_raised_as_it_is_and_without_a_warning_on_batching():
    task = replace(TASK, loss=lambda m, b: m(b[0]) @ b[0].sum())
    # Warnings are errors here, so a warning would come first.
    with pytest.raises(RuntimeError, match="both arguments to matmul"):
        InnerTrainer([task], siblings=2).evaluate("train")
