"""Generated images, compressed and fine-tuned MLPs, hard labels: each is what its table says."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from pacesetter.inner_models.draw import Draw
from pacesetter.inner_models.families import images
from pacesetter.inner_models.families.teachers import compressed, hard_labels, transfer
from pacesetter.inner_models.networks.convnet import ConvShape, build_convnet, draw_convnet
from pacesetter.inner_models.networks.mlp import MLPShape, build_mlp


def make_draw(seed=0):
    return Draw(torch.Generator().manual_seed(seed))


def shapes_of(family, count=150):
    generator = torch.Generator().manual_seed(0)
    return [family.sample_shape(generator).model for _ in range(count)]


# -- convnets ---------------------------------------------------------------------------------


def counted_cost(model, inputs):
    """Multiply-adds of one row, counted from what the layers really return."""
    total = 0

    def count(layer, _, output):
        nonlocal total
        fan_in = layer.weight[0].numel()
        total += output[0].numel() * fan_in

    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    assert model(inputs).ndim == 2
    return total


@pytest.mark.parametrize("image", [(1, 8), (3, 7), (1, 28), (3, 32), (2, 1)])
def test_convnet_has_the_sizes_and_the_cost_that_its_shape_says(image):
    draw = make_draw()
    for _ in range(25):
        shape = draw_convnet(draw, image=image, classes=5, depth=(1, 4))
        inputs = torch.randn(3, image[0], image[1], image[1], generator=draw.generator)
        model = build_convnet(shape)
        assert counted_cost(model, inputs) == shape.cost
        side = image[1]
        for layer in model:
            inputs = layer(inputs)
            if isinstance(layer, nn.Flatten):
                break
            side = inputs.shape[-1]
        assert side == (1 if shape.head == "mean" else shape.sides[-1])
        assert model(torch.zeros(2, image[0], image[1], image[1])).shape == (2, 5)


def test_costly_convnets_are_cut_down():
    dear, cheap = [
        [draw_convnet(d, image=(2, 10), classes=4, width=(8, 64), max_cost=cost) for _ in range(60)]
        for d, cost in ((make_draw(), math.inf), (make_draw(), 12_000))
    ]
    assert max(s.cost for s in dear) > 100_000
    assert max(s.cost for s in cheap) <= 12_000
    assert [s.activation for s in dear] == [s.activation for s in cheap]
    smallest = draw_convnet(make_draw(), image=(3, 32), classes=10, max_cost=1)
    assert smallest.channels == (4,)


def test_bad_shapes_are_refused_with_what_came():
    with pytest.raises(ValueError, match=r"at least one layer.*channels=\(\)"):
        ConvShape(image=(1, 8), channels=())
    with pytest.raises(ValueError, match=r"sizes of 1 or more.*image=\(0, 8\)"):
        ConvShape(image=(0, 8), channels=(4,))
    with pytest.raises(ValueError, match="kernel must be odd and positive, but got 4"):
        ConvShape(image=(1, 8), channels=(4,), kernel=4)
    with pytest.raises(ValueError, match="bits must be 2 or more, but got 1"):
        compressed.fake_quantise(torch.ones(3), bits=1)


# -- generated images -------------------------------------------------------------------------

SIZES = (3, 2, 9)  # classes, channels, side


def paint(painter, label, count=60):
    return painter(torch.full((count,), label), torch.Generator().manual_seed(1))


@pytest.mark.parametrize("waves", [1, 3])
def test_textures_of_a_class_span_two_dimensions_per_wave(waves):
    painter = images.draw_textures(make_draw(), SIZES, waves=waves)
    parts = [paint(painter, label).flatten(1).double() for label in range(3)]
    for part in parts:
        values = torch.linalg.svdvals(part)
        assert values[2 * waves - 1] > 1e-2 * values[0]
        assert values[2 * waves] < 1e-5 * values[0]
    assert torch.linalg.matrix_rank(torch.cat(parts), rtol=1e-4) > 2 * waves


def test_patterns_are_whole_at_every_position():
    painter = images.draw_patterns(make_draw(), SIZES, side=4, clutter=0)
    corners = set()
    contents = []
    for image in paint(painter, 1, count=300):
        rows, columns = image.abs().sum(0).nonzero().T
        top, left = int(rows.min()), int(columns.min())
        assert (int(rows.max()) - top, int(columns.max()) - left) == (3, 3)
        corners.add((top, left))
        contents.append(image[:, top : top + 4, left : left + 4].flatten())
    assert corners == {(i, j) for i in range(6) for j in range(6)}
    normal = nn.functional.normalize(torch.stack(contents), dim=1)
    assert torch.allclose(normal, normal[:1].expand_as(normal), atol=1e-5)


def test_prototypes_are_shifted_round_the_edges():
    painter = images.draw_prototypes(make_draw(), SIZES, blur=1.0, shift=2)
    first, *others = paint(painter, 0)
    offsets = set()
    for other in others:
        found = [
            (i, j)
            for i in range(-4, 5)
            for j in range(-4, 5)
            if torch.equal(first.roll((i, j), (1, 2)), other)
        ]
        assert len(found) == 1
        offsets |= set(found)
    assert len(offsets) > 15
    still = paint(images.draw_prototypes(make_draw(), SIZES, blur=1.0, shift=0), 0)
    assert torch.equal(still, still[:1].expand_as(still))
    assert still[0].std() == pytest.approx(1, abs=1e-4)


KINDS = {"textures": (1.0, 0.0), "patterns": (0.0, 1.0), "prototypes": (0.0, 0.0)}


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_each_kind_have_their_spread_and_every_class(kind):
    textures, patterns = KINDS[kind]
    ranges = images.ImageRanges(
        texture_share=textures,
        pattern_share=patterns,
        pixel_noise=(0.3, 0.3),
        label_noise=(0.05, 0.05),
        input_scale=(1.5, 1.5),
        clutter=(0, 1),
    )
    draw = make_draw(4)
    shape = ConvShape(image=(1, 8), channels=(12,), classes=3, pooling="none")
    rows = images.ImageConvnet(ranges).draw_rows(shape, draw)
    new = rows(1000, draw.generator)
    assert new[0].std() == pytest.approx(1.5, rel=0.15)
    assert torch.bincount(new[1], minlength=3).min() > 250


# -- quantised --------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
@pytest.mark.parametrize("per_row", [True, False])
def test_fake_quantisation_is_that_of_torch(bits, per_row):
    values = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    values[2] = 0.0
    top = 2 ** (bits - 1) - 1
    if per_row:
        step = values.abs().amax(1).clamp(min=1e-12) / top
        zero = torch.zeros(6, dtype=torch.int32)
        theirs = torch.fake_quantize_per_channel_affine(values, step, zero, 0, -top, top)
    else:
        step = float(values.abs().max()) / top
        theirs = torch.fake_quantize_per_tensor_affine(values, step, 0, -top, top)
    values.requires_grad_()
    ours = compressed.fake_quantise(values, bits=bits, per_row=per_row)
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert len(ours.detach()[0].mul(1e4).round().unique()) <= 2**bits - 1
    slope = torch.randn(6, 40, generator=torch.Generator().manual_seed(1))
    (grad,) = torch.autograd.grad((ours * slope).sum(), values)
    assert torch.equal(grad, slope)


def test_quantised_mlp_quantises_the_layers_that_its_shape_says():
    mlp = MLPShape(widths=(5, 7, 6, 3), activation="tanh", layer_norm=True)
    for ends in (True, False):
        shape = compressed.QuantisedMLPShape(mlp=mlp, weight_bits=3, activation_bits=4, ends=ends)
        model = compressed.build_quantised_mlp(shape)
        linear = [layer for layer in model if isinstance(layer, nn.Linear)]
        assert [(la.in_features, la.out_features) for la in linear] == [(5, 7), (7, 6), (6, 3)]
        assert [isinstance(la, compressed.QuantisedLinear) for la in linear] == [ends, True, ends]
        assert sum(isinstance(layer, nn.LayerNorm) for layer in model) == 2
        bits = [la.input_bits for la in linear if isinstance(la, compressed.QuantisedLinear)]
        assert bits == ([0, 4, 4] if ends else [4])
    layer = linear[1]
    x = torch.randn(9, 7, generator=torch.Generator().manual_seed(0))
    weight, seen = (
        compressed.fake_quantise(layer.weight, bits=3),
        compressed.fake_quantise(x, bits=4),
    )
    assert torch.allclose(layer(x), seen @ weight.T + layer.bias, atol=1e-6)
    assert not torch.allclose(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    # Every example has a scale of its own: its output does not depend on the others.
    assert torch.allclose(layer(x[:1]), layer(x)[:1], atol=1e-6)


# -- pruned -----------------------------------------------------------------------------------


@pytest.mark.parametrize("saliency", ["random", "magnitude"])
@pytest.mark.parametrize("sparsity", [0.3, 0.95])
def test_masked_layer_is_that_of_torch_prune(saliency, sparsity):
    torch.manual_seed(0)
    ours = compressed.MaskedLinear(40, 30, sparsity=sparsity, saliency=saliency, rescaled=False)
    theirs = nn.Linear(40, 30)
    theirs.load_state_dict({"weight": ours.weight, "bias": ours.bias})
    prune.custom_from_mask(theirs, "weight", ours.mask)
    if saliency == "magnitude":
        expected = prune.l1_unstructured(nn.Linear(40, 30), "weight", sparsity, ours.weight.abs())
        assert torch.equal(ours.mask, expected.weight_mask)
    x = torch.randn(8, 40)
    assert torch.equal(ours(x), theirs(x))
    assert int(ours.mask.sum()) == round((1 - sparsity) * 1200)
    ours(x).square().sum().backward()
    assert (ours.weight.grad[ours.mask == 0] == 0).all()
    assert (ours.weight.grad[ours.mask == 1] != 0).float().mean() > 0.99


@torch.no_grad()
def test_rescaling_keeps_the_size_of_what_a_random_mask_lets_through():
    torch.manual_seed(0)
    x = torch.randn(200, 100)
    dense = float(nn.Linear(100, 200, bias=False)(x).std())
    spreads = {}
    for rescaled in (True, False):
        layer = compressed.MaskedLinear(
            100, 200, sparsity=0.9, saliency="random", rescaled=rescaled
        )
        spreads[rescaled] = float((layer(x) - layer.bias).std())
    assert spreads[True] / dense == pytest.approx(1, rel=0.1)
    assert spreads[False] / dense == pytest.approx(math.sqrt(0.1), rel=0.1)


def test_pruned_tasks_of_one_shape_have_masks_of_their_own():
    family = compressed.PrunedMLP()
    tasks = family.sample_group(8, torch.Generator().manual_seed(3))
    models = [task.build_model() for task in tasks]
    masks = [dict(m.named_buffers())["0.mask"] for m in models]
    shares = [1 - float(mask.mean()) for mask in masks]
    assert len(set(shares)) > 4
    assert min(shares) > 0.2
    assert max(shares) < 0.96
    shape = MLPShape(widths=(20, 40, 5), activation="relu")
    for head in (True, False):
        kept = compressed.build_pruned_mlp(
            shape, sparsity=0.8, saliency="random", rescaled=True, head=head
        )
        assert float(kept[0].mask.mean()) == pytest.approx(0.2, abs=0.01)
        assert float(kept[2].mask.mean()) == (pytest.approx(0.2, abs=0.01) if head else 1.0)


# -- fine-tuned -------------------------------------------------------------------------------


def fine_tuning_shape(**changes):
    mlp = MLPShape(widths=(8, 32, 32, 4), activation="tanh", layer_norm=True)
    return transfer.FineTuningShape(mlp=mlp, **{"new_head": False, **changes})


@pytest.mark.parametrize("new_head", [True, False])
@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_fine_tuned_model_keeps_trained_weights_and_freezes_the_lower_layers(new_head, frozen):
    shape = fine_tuning_shape(new_head=new_head, frozen=frozen)
    old = build_mlp(replace(shape.mlp, widths=(8, 32, 32, 9)) if new_head else shape.mlp)
    model = transfer.build_fine_tuned(shape, weights=old.state_dict())
    kept = {n: p for n, p in model.named_parameters() if not (new_head and n.startswith("6."))}
    trained = dict(old.named_parameters())
    assert all(torch.equal(p, trained[n]) for n, p in kept.items())
    # A linear layer and the norm that follows it, twice, then the head.
    fixed = {n for n, p in model.named_parameters() if not p.requires_grad}
    layers = {0: (), 1: ("0", "1"), 2: ("0", "1", "3", "4")}[frozen]
    assert fixed == {f"{i}.{n}" for i in layers for n in ("weight", "bias")}
    with torch.no_grad():
        model[0].weight.add_(1.0)
    again = transfer.build_fine_tuned(shape, weights=old.state_dict())
    assert torch.equal(again[0].weight, old[0].weight)


def first_problem(seed, **ranges):
    family = transfer.FineTunedMLP(
        transfer.FineTuningRanges(frozen_share=0.0, loss_scale=(1, 1), **ranges)
    )
    shape = family.sample_shape(torch.Generator().manual_seed(seed))
    return family, shape, family.draw_problem(shape, make_draw(seed))


def test_what_was_learned_before_helps_where_the_tasks_are_alike_and_less_where_they_are_not():
    better = {}
    for similarity in (0.98, 0.1):
        gains = []
        for seed in range(3):
            _, shape, problem = first_problem(
                seed, new_head_share=0.0, similarity=(similarity, similarity)
            )
            rows = problem.rows(500, torch.Generator().manual_seed(0))
            fresh = build_mlp(shape.model.mlp)
            losses = [problem.loss(model, rows).item() for model in (problem.build_model(), fresh)]
            gains.append(math.log(losses[1] / losses[0]))
        better[similarity] = sum(gains) / len(gains)
    assert better[0.98] > 0.5
    assert better[0.98] > better[0.1] + 0.3


# -- hard labels ------------------------------------------------------------------------------


def test_wrong_labels_come_as_often_as_they_should_and_the_right_one_stays_the_likeliest():
    draw = make_draw()
    for classes in (2, 3, 10):
        uniform = hard_labels.uniform_flips(classes, share=0.5)
        paired = [
            hard_labels.paired_flips(draw, classes, share=s) for s in (0.1, 0.4) for _ in range(200)
        ]
        for answers in (uniform, *paired):
            assert torch.allclose(answers.sum(1), torch.ones(classes))
            assert (answers.argmax(1) == torch.arange(classes)).all()
        off = uniform[~torch.eye(classes, dtype=torch.bool)]
        assert torch.allclose(off, torch.tensor(0.5 / classes))
        for answers in paired:
            wrong = answers - torch.diag(answers.diagonal())
            assert ((wrong > 0).sum(1) <= 1).all()
            assert ((wrong > 0).sum(0) <= 1).all()
        shares = torch.stack([1 - a.diagonal().mean() for a in paired[:200]])
        assert shares.mean() == pytest.approx(0.1, rel=0.15)


def test_class_shares_fall_exponentially():
    shares = hard_labels.unequal_shares(make_draw(), 5, ratio=81.0).sort().values
    assert shares.sum() == pytest.approx(1)
    assert torch.allclose(shares[1:] / shares[:-1], torch.full((4,), 3.0), rtol=1e-4)


def read_off(problem, rows, count=20_000):
    """Share of each class among rows, and how often it is labelled as another.

    Clusters are so far apart that the labels of new rows, which are clean, name them all.
    """
    g = torch.Generator().manual_seed(0)
    clean, right = problem.new_rows(2000, g)
    seen, labels = rows(count, g)
    truth = right[torch.cdist(seen, clean).argmin(1)]
    shares = torch.bincount(truth).double() / count
    return shares, (truth != labels).double().mean()


@pytest.mark.parametrize("noisy", [0.0, 1.0])
@pytest.mark.parametrize("balanced", [0.0, 1.0])
def test_training_rows_have_the_noise_and_the_imbalance_and_new_rows_do_not(noisy, balanced):
    ranges = hard_labels.HardLabelRanges(
        separation=(60.0, 60.0),
        condition=(1.0, 1.0),
        inputs=(6, 6),
        classes=(4, 4),
        imbalance=(10.0, 10.0),
        uniform_noise=(0.3, 0.3),
        imbalanced_share=1.0,
        noisy_share=noisy,
        paired_share=0.0,
        balanced_share=balanced,
    )
    family = hard_labels.HardLabelsMLP(ranges)
    shape = family.sample_shape(torch.Generator().manual_seed(0))
    problem = family.draw_problem(shape, make_draw())
    shares, wrong = read_off(problem, problem.rows)
    assert shares.max() / shares.min() == pytest.approx(10, rel=0.15)
    assert wrong == pytest.approx(0.3 * 3 / 4 * noisy, abs=0.01)
    shares, wrong = read_off(problem, problem.new_rows)
    assert shares.max() / shares.min() == pytest.approx(1 if balanced else 10, rel=0.15)
    assert wrong == 0
