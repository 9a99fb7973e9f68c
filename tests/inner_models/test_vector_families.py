"""Families whose data are vectors or tables: each keeps what it says of its optimum and data."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pacesetter.inner_models.draw import Draw
from pacesetter.inner_models.engine.trainer import InnerTrainer
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


# -- quadratics --------------------------------------------------------------------------------


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


@pytest.mark.parametrize("rotated", [False, True])
def test_floor_and_noise_of_a_quadratic_are_measured_by_the_excess_at_its_start(rotated):
    ranges = convex.QuadraticRanges(
        start=(1e-6, 1e-6), balance=(1, 1), noise=(0.5, 0.5), visible=(0.2, 0.2), floor=(0.01, 0.01)
    )
    problem = problem_of(convex.Quadratic(ranges), convex.QuadraticShape(dim=9, rotated=rotated))
    model = problem.build_model()
    along = model.rotation @ model.target if rotated else model.target
    excess = float(along.square() @ model.curvature) / 2
    assert float(model.floor) == pytest.approx(0.01 * excess, rel=1e-3)
    assert problem.optimum == pytest.approx((0.01 + 0.2 * 0.5) * excess, rel=1e-3)


def test_spectra_have_the_condition_number_and_three_kinds():
    draw = Draw(generator(0))
    spectra = [convex.draw_spectrum(draw, dim=20, condition=500.0) for _ in range(60)]
    kinds = set()
    for spectrum in spectra:
        assert spectrum[0] == 1
        assert float(spectrum[-1]) == pytest.approx(1 / 500, rel=1e-4)
        assert (spectrum.diff() <= 0).all()
        slopes = spectrum.log().diff() / torch.arange(1, 21).log().diff()
        straight = float(slopes.std()) < 1e-3
        kinds.add("power" if straight else "clusters" if len(spectrum.unique()) == 2 else "random")
    assert kinds == {"power", "clusters", "random"}
    for condition in (1.0, 1e4):
        assert convex.draw_spectrum(draw, dim=2, condition=condition).max() == 1


# -- logistic regression -----------------------------------------------------------------------


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


def test_the_entropy_is_that_of_numerical_integration():
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    for spread, bias in ((1.0, 0.0), (3.0, 1.0)):
        score = spread * nodes + bias
        # H = -p log p - (1 - p) log(1 - p), with p the sigmoid: log(1 - p) is log p - score.
        entropy = np.logaddexp(0, -score) + score / (1 + np.exp(np.minimum(score, 700)))
        exact = float((weights * entropy).sum() / weights.sum())
        effects = torch.tensor([[0.6], [0.8]]) * spread
        assert convex.expected_entropy(effects, torch.tensor([bias])) == pytest.approx(
            exact, rel=1e-3
        )
        # Two scores say the same as their difference.
        two = torch.cat([effects, torch.zeros(2, 1)], dim=1)
        got = convex.expected_entropy(two, torch.tensor([bias, 0.0]))
        assert got == pytest.approx(exact, rel=1e-3)


# -- ratings -----------------------------------------------------------------------------------


def test_popularity_follows_zipf():
    family = latent.Ratings(latent.RatingsRanges(skew=(1.2, 1.2), seen=(0.9, 0.9)))
    shape = latent.RatingsShape(users=100, items=100, rank=2, learns_mean=True)
    users, items, _ = problem_of(family, shape).rows(400_000, generator(1))
    for who, exponent in ((users, 0.6), (items, 1.2)):
        counts = torch.bincount(who, minlength=100).sort(descending=True).values.double()
        rank = torch.arange(1, 101, dtype=torch.float64).log().numpy()
        slope = np.polyfit(rank, counts.log().numpy(), 1)[0]
        assert slope == pytest.approx(-exponent, abs=0.08)


@pytest.mark.parametrize("seed", range(4))
def test_pairs_of_training_rows_are_in_no_other_split(seed):
    family, g = latent.Ratings(), generator(seed)
    shape = family.sample_shape(g)
    task = family.build(Shape(shape.model, JOB), g)
    problem = problem_of(family, shape.model, seed)

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


@pytest.mark.parametrize("learns_mean", [False, True])
def test_a_prediction_is_mean_biases_and_dot_product(learns_mean):
    shape = latent.RatingsShape(users=5, items=6, rank=3, learns_mean=learns_mean)
    model = latent.MatrixFactorisation(shape, start=0.5)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    assert sum(p.numel() for p in model.parameters()) == shape.num_params
    users, items = torch.tensor([4, 0]), torch.tensor([5, 2])
    expected = (model.user.weight[users] * model.item.weight[items]).sum(1)
    expected += model.user_bias.weight[users, 0] + model.item_bias.weight[items, 0]
    if learns_mean:
        expected += model.mean[0]
    assert torch.allclose(model(users, items), expected, atol=1e-6)


# -- autoencoders ------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_a_tied_decoder_uses_the_transposed_weights(tied):
    shape = latent.AutoencoderShape(widths=(8, 5, 2), activation="tanh", tied=tied)
    model = latent.Autoencoder(shape)
    if tied:
        for bias in model.biases:
            torch.nn.init.normal_(bias)
    first, second = (layer.weight for layer in model.encoder)
    inputs = torch.randn(4, 8, generator=generator(0))
    code = torch.tanh(inputs @ first.T + model.encoder[0].bias) @ second.T + model.encoder[1].bias
    if tied:
        back, biases = (second, first), tuple(model.biases)
    else:
        back = tuple(layer.weight.T for layer in model.decoder)
        biases = tuple(layer.bias for layer in model.decoder)
    expected = torch.tanh(code @ back[0] + biases[0]) @ back[1] + biases[1]
    assert torch.allclose(model(inputs), expected, atol=1e-6)
    weights = (8 * 5 + 5 * 2) * (1 if tied else 2)
    assert sum(p.numel() for p in model.parameters()) == weights + (5 + 2) + (5 + 8)


@pytest.mark.parametrize("dimension", [1, 3, 6])
def test_a_manifold_that_hardly_bends_has_the_latent_dimension(dimension):
    ranges = latent.AutoencoderRanges(
        bend=(1e-3, 1e-3), latent=(dimension, dimension), denoise_share=1.0
    )
    rows = latent.Autoencoders(ranges).draw_rows(20, Draw(generator(0)))
    points = rows(500, generator(1))[1]
    spectrum = torch.linalg.svdvals(points - points.mean(0))
    assert spectrum[dimension - 1] > 1e-2 * spectrum[0]
    assert spectrum[dimension] < 5e-3 * spectrum[dimension - 1]


def test_noise_and_targets_of_autoencoders():
    for share in (0.0, 1.0):
        ranges = latent.AutoencoderRanges(noise=(0.2, 0.2), input_scale=(2, 2), denoise_share=share)
        rows = latent.Autoencoders(ranges).draw_rows(10, Draw(generator(0)))
        inputs, targets = rows(20_000, generator(1))
        assert float(targets.var(0).mean().sqrt()) == pytest.approx(2, rel=0.05)
        noise = (inputs - targets).std(0) / targets.std(0)
        assert torch.allclose(noise, torch.full((10,), 0.2 * share), atol=0.01)


# -- two heads ---------------------------------------------------------------------------------

TWO_HEADED = multitask.TwoHeadedShape(
    trunk=MLPShape(widths=(20, 12), activation="relu"), classes=10, outputs=4
)


def test_the_loss_of_two_heads_is_weighted_by_the_models_buffer():
    problem = problem_of(multitask.Multitask(), TWO_HEADED)
    model = problem.build_model()
    inputs, labels, targets = batch = problem.rows(50, generator(1))
    logits, values = model(inputs)
    hidden = torch.relu(inputs @ model.trunk[0].weight.T + model.trunk[0].bias)
    assert torch.allclose(logits, model.classifier(hidden), atol=1e-6)
    assert torch.allclose(values, model.regressor(hidden), atol=1e-6)
    for weight in (float(model.regression_weight), 0.0, 7.0):
        model.regression_weight.fill_(weight)
        expected = F.cross_entropy(logits, labels) + weight * F.mse_loss(values, targets)
        assert torch.allclose(problem.loss(model, batch), expected)


@pytest.mark.parametrize("related", [True, False])
def test_related_heads_share_their_features(related, monkeypatch):
    monkeypatch.setattr(multitask, "FEATURES", 3)
    family = multitask.Multitask(multitask.MultitaskRanges(related_share=float(related)))
    heads = problem_of(family, TWO_HEADED).rows.keywords
    white = torch.randn(300, 20, generator=generator(1), dtype=torch.float32)
    answers = [heads["label_head"](white), heads["target_head"](white)]
    ranks = [int(torch.linalg.matrix_rank(a - a.mean(0), rtol=1e-4)) for a in answers]
    both = torch.cat(answers, dim=1)
    assert ranks == [3, 3]
    joint = int(torch.linalg.matrix_rank(both - both.mean(0), rtol=1e-4))
    assert joint == (3 if related else 6)


def test_targets_of_two_heads_have_their_noise():
    family = multitask.Multitask(
        multitask.MultitaskRanges(target_noise=(0.4, 0.4), label_noise=(0.3, 0.3))
    )
    shares = set()
    for seed in range(8):
        rows = problem_of(family, TWO_HEADED, seed).rows
        _, labels, targets = rows(20_000, generator(1))
        assert torch.allclose(targets.var(0), torch.full((4,), 1 + 0.4**2), atol=0.15)
        # The same inputs are drawn first: what differs from the teacher's answer is noise.
        white, _ = rows.keywords["inputs"](20_000, generator(1))
        wrong = (rows.keywords["label_head"](white).argmax(1) != labels).double().mean()
        shares.add(round(float(wrong), 1))
    assert shares == {0.0, 0.3}


# -- distillation ------------------------------------------------------------------------------

STUDENT = MLPShape(widths=(8, 16, 5), activation="gelu")


def test_soft_cross_entropy_is_that_of_torch_at_the_temperature():
    ranges = DistillationRanges(temperature=(3, 3))
    problem = problem_of(DistilledMLP(ranges), STUDENT)
    model = problem.build_model()
    inputs, chances = batch = problem.rows(100, generator(1))
    assert torch.allclose(chances.sum(1), torch.ones(100))
    expected = F.cross_entropy(model.net(inputs) / 3, chances)
    assert torch.allclose(problem.loss(model, batch), expected)


@pytest.mark.parametrize("seed", range(3))
def test_the_optimum_of_students_is_the_entropy_of_the_teachers_answers(seed):
    problem = problem_of(DistilledMLP(), STUDENT, seed)
    _, chances = problem.rows(20_000, generator(seed + 10))
    mean, error = mean_and_error(torch.special.entr(chances.double()).sum(1))
    # The optimum was estimated on a sample of about the same size.
    assert abs(mean - problem.optimum) < 6 * error
    perfect = soft_cross_entropy(torch.nn.Identity(), (chances.clamp(min=1e-30).log(), chances))
    assert float(perfect) == pytest.approx(mean, rel=1e-4)


def test_no_student_undercuts_the_teachers_entropy():
    shape = Shape(STUDENT, JOB)
    task = DistilledMLP(DistillationRanges(loss_scale=(1, 1))).build(shape, generator(0))
    assert task.optimum == pytest.approx(problem_of(DistilledMLP(), STUDENT).optimum)
    trainer = InnerTrainer([task], siblings=2)
    floors = {}
    for split in SPLITS:
        targets = getattr(task.splits, split)[1].double()
        floors[split] = float(torch.special.entr(targets).sum(1).mean())
    start = trainer.evaluate("train")[0] - floors["train"]
    trainer.run(np.tile([0.01, 0.03], (150, 1)), momentum=np.full(2, 0.9))
    for split, floor in floors.items():
        assert (trainer.evaluate(split) > floor).all()
    assert (trainer.evaluate("train") - floors["train"]).min() < start / 2


def test_soft_answers_have_the_spread_that_was_drawn():
    for spread in (1.0, 6.0):
        ranges = DistillationRanges(spread=(spread, spread))
        problem = problem_of(DistilledMLP(ranges), STUDENT)
        white = torch.randn(5000, 8, generator=generator(1))
        scores = problem.rows.keywords["teacher"](white)
        assert torch.allclose(scores.std(0), torch.full((5,), spread), rtol=0.1)
        _, chances = problem.rows(5000, generator(2))
        sure = float((chances.max(1).values > 0.9).double().mean())
        assert (sure < 0.1) if spread == 1 else (sure > 0.5)
