"""The traced and simplified program of an inner step does what the program itself does."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from pacesetter.inner_models.engine.program import TRACE_FROM, trace
from pacesetter.inner_models.engine.rewrites import simplify
from pacesetter.inner_models.engine.trainer import InnerTrainer
from pacesetter.inner_models.task import ModuleTask, Splits

aten = torch.ops.aten


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x):
        h = torch.tanh(self.up(self.norm(x)))
        # The value of h is used again: it must not be overwritten.
        return x + self.down(h * torch.sigmoid(h)) * self.scale


MODELS = {
    "mlp": lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.GELU()),
    "norm and dropout": lambda: nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.Dropout(0.3), nn.Linear(8, 8)
    ),
    "residual": lambda: nn.Sequential(nn.Linear(6, 8), Residual(), Residual(), nn.Softplus()),
}


def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().mean() - 3.0


def make_task(name, seed=0):
    generator = torch.Generator().manual_seed(seed)
    parts = [
        (torch.randn(n, 6, generator=generator), torch.rand(n, 8, generator=generator))
        for n in (40, 10, 10, 10)
    ]
    return ModuleTask(MODELS[name], loss, Splits(*parts), horizon=60, batch_size=8, seed=seed)


def train(tasks, **options):
    trainer = InnerTrainer(tasks, siblings=3, dtype=torch.float64, **options)
    rng = np.random.default_rng(0)
    stats = [
        trainer.run(
            0.01 * np.exp(rng.normal(size=(steps, 6))),
            momentum=rng.uniform(0.3, 0.95, 6),
            clip_ratio=rng.uniform(0.5, 1.5, 6),
        )
        for steps in (3, 7, 2)
    ]
    return trainer, stats


@pytest.mark.parametrize("name", MODELS)
def test_a_traced_run_equals_an_untraced_one(name):
    tasks = [make_task(name, seed) for seed in range(2)]
    plain, expected = train(tasks, traced=False)
    assert plain._program._program is None
    for traced, graphs in ((True, False), (True, True), (False, True)):
        fast, found = train(tasks, traced=traced, graphs=graphs)
        assert (fast._program._program is not None) == traced
        for run in range(6):
            weights = plain.parameters(run) | plain.buffers(run)
            others = fast.parameters(run) | fast.buffers(run)
            for key, value in weights.items():
                assert torch.allclose(others[key], value, rtol=1e-8, atol=1e-10)
        for before, after in zip(expected, found, strict=True):
            for key, value in vars(before).items():
                close = pytest.approx(value, rel=1e-9, abs=1e-12, nan_ok=True)
                assert getattr(after, key) == close


@pytest.mark.parametrize(("horizon", "traced"), [(TRACE_FROM, True), (TRACE_FROM - 1, False)])
def test_long_runs_are_traced_and_short_ones_are_not(horizon, traced):
    trainer = InnerTrainer([replace(make_task("mlp"), horizon=horizon)])
    trainer.run(np.full((1, 1), 1e-3), momentum=np.full(1, 0.9))
    assert (trainer._program._program is not None) == traced


def test_a_model_that_cannot_be_traced_is_trained_all_the_same():
    def program(x):
        return [x * float(x.sum())]

    assert trace(program, [torch.ones(3)]) is None


def simplified(function, *inputs):
    traced = make_fx(function, tracing_mode="fake")(*inputs)
    simplify(traced.graph)
    traced.recompile()
    return traced


def targets(traced: fx.GraphModule):
    return [node.target for node in traced.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize(
    ("shape", "fused"),
    [
        ((2, 2, 1, 7), True),
        ((2, 1, 1, 7), False),
        ((1, 1, 5, 7), False),
        ((2, 2, 5, 7), False),
        ((2, 2, 5, 1), False),
    ],
)
def test_a_bias_and_nothing_else_is_fused_into_a_batch_of_products(shape, fused):
    x, w, b = torch.randn(4, 5, 6), torch.randn(4, 6, 7), torch.randn(shape)

    def affine(x, w, b):
        return torch.bmm(x, w).view(2, 2, 5, 7) + b

    traced = simplified(affine, x, w, b)
    assert (aten.baddbmm.default in targets(traced)) == fused
    assert {aten.add.Tensor, aten.add_.Tensor}.isdisjoint(targets(traced)) == fused
    assert torch.allclose(traced(x, w, b), affine(x, w, b), atol=1e-6)


def test_in_place_work_spares_inputs_and_whatever_is_looked_at_again():
    def program(x, y):
        a = x + y  # may not overwrite its inputs
        b = a * 2.0  # may not overwrite a, which is used below
        c = torch.relu(b)  # b is dead after this: overwritten
        d = a.view(-1)[:3]
        e = torch.exp(c)
        f = x + 1.0
        return e + 1.0, d, f * f.t()  # seen through another view

    x, y = torch.randn(3, 3), torch.randn(3, 3)
    expected = program(x, y)
    copies = x.clone(), y.clone()
    traced = simplified(program, x, y)
    found = traced(x, y)
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))
    assert torch.equal(x, copies[0])
    assert torch.equal(y, copies[1])
    assert {getattr(aten, name).default for name in ("relu_", "exp_")} < set(targets(traced))
    assert {aten.add.Tensor, aten.mul.Tensor} < set(targets(traced))


def test_random_numbers_and_writes_into_arguments_are_kept():
    def program(x, seen):
        torch.rand(3)  # unused, but it moves the generator on
        seen.add_(1.0)
        return x + torch.rand_like(x)

    x, seen, twin = torch.zeros(4), torch.zeros(2), torch.zeros(2)
    traced = simplified(program, x, seen.clone())
    torch.manual_seed(0)
    expected = program(x, seen)
    torch.manual_seed(0)
    assert torch.equal(traced(x, twin), expected)
    assert torch.equal(twin, seen)
