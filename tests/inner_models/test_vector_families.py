"""Families whose data are vectors or tables: each keeps what it says of its optimum and data."""

import math

import pytest
import torch
from torch.nn import functional as F

from pacesetter.inner_models.draw import Draw
from pacesetter.inner_models.families import convex, latent
from pacesetter.inner_models.families.base import Job, Shape
from pacesetter.inner_models.families.teachers import multitask
from pacesetter.inner_models.families.teachers.transfer import DistillationRanges, DistilledMLP
from pacesetter.inner_models.losses import soft_cross_entropy
from pacesetter.inner_models.networks.mlp import MLPShape
from pacesetter.inner_models.task import SPLITS

JOB = Job(num_train=256, batch_size=32, horizon=100)


@pytest.fixture(autouse=True)
def _seeded():
    """Models draw their first weights from the global generator."""
    torch.manual_seed(0)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def problem_of(family, model, seed=0):
    return family.draw_problem(Shape(model, JOB), Draw(generator(seed)))


def mean_and_error(values):
    """Mean of independent values, and its standard error."""
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_the_expected_loss_of_a_quadratic_is_what_its_hessian_says(rotated, seed):
    problem = problem_of(convex.Quadratic(), convex.QuadraticShape(dim=7, rotated=rotated), seed)
    model = problem.build_model().double()
    (noise,) = problem.rows(100_000, generator(1))
    axes = model.rotation if rotated else torch.eye(7, dtype=torch.float64)
    hessian = axes.T @ torch.diag(model.curvature) @ axes
    with torch.no_grad():
        start = model.weight.clone()
        model.weight.copy_(model.target)
        best = model(noise.double())
        mean, error = mean_and_error(best)
        assert abs(mean - problem.optimum) < 5 * error + 1e-6 * problem.optimum
        # Nowhere is the expected loss lower: it rises as the Hessian says, in any direction.
        for step in (start - model.target, *torch.randn(5, 7, generator=generator(2)).double()):
            model.weight.copy_(model.target + step)
            mean, error = mean_and_error(model(noise.double()) - best)
            assert abs(mean - float(step @ hessian @ step) / 2) < 5 * error + 1e-9


@pytest.mark.parametrize(("classes", "seed"), [(2, 0), (2, 1), (4, 0)])
def test_the_best_fit_confirms_the_optimum_of_logistic_regression(classes, seed):
    family = convex.LogisticRegression(convex.LogisticRanges(condition=(1, 1e3), sharpness=(1, 5)))
    problem = problem_of(family, convex.LogisticShape(inputs=4, classes=classes), seed)
    inputs, labels = problem.rows(10_000, generator(7))
    rows = (inputs.double(), labels if classes > 2 else labels.double())
    model = problem.build_model().double()
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=300, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = problem.loss(model, rows)
        loss.backward()
        return loss

    optimizer.step(closure)
    parts = zip(*(tensor.split(20) for tensor in rows), strict=True)
    with torch.no_grad():
        mean, error = mean_and_error(torch.stack([problem.loss(model, part) for part in parts]))
    # The fit undercuts the truth by half a row per parameter; allow a whole one.
    allowed = sum(p.numel() for p in model.parameters()) / len(labels)
    assert abs(mean - problem.optimum) < 4 * error + allowed
    assert error < 0.05 * problem.optimum


def test_pairs_of_training_rows_are_in_no_other_split():
    family, g = latent.Ratings(), generator(0)
    shape = family.sample_shape(g)
    task = family.build(Shape(shape.model, JOB), g)
    problem = problem_of(family, shape.model)

    def pairs(batch):
        return set(zip(batch[0].tolist(), batch[1].tolist(), strict=True))

    for split in SPLITS[1:]:
        assert not pairs(task.splits.train) & pairs(getattr(task.splits, split))
    fresh = pairs(problem.rows(20_000, g))
    assert len(fresh) > 50
    assert not fresh & pairs(problem.new_rows(20_000, g))


def test_the_optimum_of_ratings_is_the_variance_of_repeated_ones():
    shape = latent.RatingsShape(users=8, items=8, rank=4, learns_mean=True)
    known = problem_of(latent.Ratings(latent.RatingsRanges(true_rank=(4, 4))), shape)
    users, items, values = known.new_rows(40_000, generator(1))
    pair = 8 * users + items
    within = torch.cat(
        [values[pair == p] - values[pair == p].mean() for p in pair.unique()]
    ).square()
    mean, error = mean_and_error(within)
    assert abs(mean - known.optimum) < 5 * error + 0.01 * known.optimum
    assert problem_of(latent.Ratings(latent.RatingsRanges(true_rank=(5, 5))), shape).optimum is None


def test_a_tied_decoder_uses_the_transposed_weights():
    shape = latent.AutoencoderShape(widths=(8, 5, 2), activation="tanh", tied=True)
    model = latent.Autoencoder(shape)
    for bias in model.biases:
        torch.nn.init.normal_(bias)
    one, two = model.encoder
    inputs = torch.randn(4, 8, generator=generator(0))
    code = two(torch.tanh(one(inputs)))
    expected = torch.tanh(code @ two.weight + model.biases[0]) @ one.weight + model.biases[1]
    assert torch.allclose(model(inputs), expected, atol=1e-6)
    assert sum(p.numel() for p in model.parameters()) == 8 * 5 + 5 * 2 + (5 + 2) + (5 + 8)


TWO_HEADED = multitask.TwoHeadedShape(
    trunk=MLPShape(widths=(20, 12), activation="relu"), classes=10, outputs=4
)


def test_the_loss_of_two_heads_is_weighted_by_the_models_buffer():
    problem = problem_of(multitask.Multitask(), TWO_HEADED)
    model = problem.build_model()
    inputs, labels, targets = batch = problem.rows(50, generator(1))
    logits, values = model(inputs)
    for weight in (float(model.regression_weight), 0.0, 7.0):
        model.regression_weight.fill_(weight)
        expected = F.cross_entropy(logits, labels) + weight * F.mse_loss(values, targets)
        assert torch.allclose(problem.loss(model, batch), expected)


STUDENT = MLPShape(widths=(8, 16, 5), activation="gelu")


def test_soft_cross_entropy_is_that_of_torch_at_the_temperature():
    ranges = DistillationRanges(temperature=(3, 3))
    problem = problem_of(DistilledMLP(ranges), STUDENT)
    model = problem.build_model()
    inputs, chances = batch = problem.rows(100, generator(1))
    assert torch.allclose(chances.sum(1), torch.ones(100))
    expected = F.cross_entropy(model.net(inputs) / 3, chances)
    assert torch.allclose(problem.loss(model, batch), expected)


def test_the_optimum_of_students_is_the_entropy_of_the_teachers_answers():
    problem = problem_of(DistilledMLP(), STUDENT)
    _, chances = problem.rows(20_000, generator(10))
    mean, error = mean_and_error(torch.special.entr(chances.double()).sum(1))
    # The optimum was estimated on a sample of about the same size.
    assert abs(mean - problem.optimum) < 6 * error
    perfect = soft_cross_entropy(torch.nn.Identity(), (chances.clamp(min=1e-30).log(), chances))
    assert float(perfect) == pytest.approx(mean, rel=1e-4)
