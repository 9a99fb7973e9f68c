"""Generated images, compressed and fine-tuned MLPs, hard labels: each is what its table says."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from pacesetter.inner_models.draw import Draw
from pacesetter.inner_models.families import images
from pacesetter.inner_models.families.teachers import compressed, hard_labels, transfer
from pacesetter.inner_models.networks.convnet import ConvShape, draw_convnet
from pacesetter.inner_models.networks.mlp import MLPShape, build_mlp


def make_draw(seed=0):
    return Draw(torch.Generator().manual_seed(seed))


def test_costly_convnets_are_cut_down():
    draw = make_draw()
    for _ in range(60):
        shape = draw_convnet(draw, image=(2, 10), classes=4, width=(8, 64), max_cost=12_000)
        assert shape.cost <= 12_000
    assert draw_convnet(draw, image=(3, 32), classes=10, max_cost=1).channels == (4,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvShape(image=(1, 8), channels=()), r"at least one layer.*channels=\(\)"),
        (lambda: ConvShape(image=(0, 8), channels=(4,)), r"of 1 or more.*image=\(0, 8\)"),
        (lambda: ConvShape(image=(1, 8), channels=(4,), kernel=4), "odd and positive, but got 4"),
        (lambda: compressed.fake_quantise(torch.ones(3), bits=1), "2 or more, but got 1"),
    ],
)
def test_bad_shapes_are_refused_with_what_came(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("textures", "patterns"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_images_of_each_kind_have_their_spread_and_every_class(textures, patterns):
    ranges = images.ImageRanges(
        texture_share=textures,
        pattern_share=patterns,
        pixel_noise=(0.3, 0.3),
        label_noise=(0.05, 0.05),
        input_scale=(1.5, 1.5),
    )
    draw = make_draw(4)
    shape = ConvShape(image=(1, 8), channels=(12,), classes=3, pooling="none")
    inputs, labels = images.ImageConvnet(ranges).draw_rows(shape, draw)(1000, draw.generator)
    assert inputs.std() == pytest.approx(1.5, rel=0.15)
    assert torch.bincount(labels, minlength=3).min() > 250


@pytest.mark.parametrize("per_row", [True, False])
def test_fake_quantisation_is_that_of_torch(per_row):
    values = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    values[2] = 0.0
    if per_row:
        step = values.abs().amax(1).clamp(min=1e-12) / 3
        zero = torch.zeros(6, dtype=torch.int32)
        theirs = torch.fake_quantize_per_channel_affine(values, step, zero, 0, -3, 3)
    else:
        step = float(values.abs().max()) / 3
        theirs = torch.fake_quantize_per_tensor_affine(values, step, 0, -3, 3)
    values.requires_grad_()
    ours = compressed.fake_quantise(values, bits=3, per_row=per_row)
    assert torch.allclose(ours, theirs, atol=1e-6)
    slope = torch.randn(6, 40, generator=torch.Generator().manual_seed(1))
    (grad,) = torch.autograd.grad((ours * slope).sum(), values)
    assert torch.equal(grad, slope)  # straight through


@pytest.mark.parametrize("saliency", ["random", "magnitude"])
def test_masked_layer_is_that_of_torch_prune(saliency):
    torch.manual_seed(0)
    ours = compressed.MaskedLinear(40, 30, sparsity=0.7, saliency=saliency, rescaled=False)
    theirs = nn.Linear(40, 30)
    theirs.load_state_dict({"weight": ours.weight, "bias": ours.bias})
    prune.custom_from_mask(theirs, "weight", ours.mask)
    if saliency == "magnitude":
        expected = prune.l1_unstructured(nn.Linear(40, 30), "weight", 0.7, ours.weight.abs())
        assert torch.equal(ours.mask, expected.weight_mask)
    x = torch.randn(8, 40)
    assert torch.equal(ours(x), theirs(x))
    assert int(ours.mask.sum()) == round(0.3 * 1200)


def test_pruned_tasks_of_one_shape_have_masks_of_their_own():
    tasks = compressed.PrunedMLP().sample_group(8, torch.Generator().manual_seed(3))
    masks = [dict(task.build_model().named_buffers())["0.mask"] for task in tasks]
    shares = {1 - float(mask.mean()) for mask in masks}
    assert len(shares) > 4
    assert 0.2 < min(shares) < max(shares) < 0.96


@pytest.mark.parametrize("new_head", [True, False])
@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_fine_tuned_model_keeps_trained_weights_and_freezes_the_lower_layers(new_head, frozen):
    mlp = MLPShape(widths=(8, 32, 32, 4), activation="tanh", layer_norm=True)
    shape = transfer.FineTuningShape(mlp=mlp, new_head=new_head, frozen=frozen)
    old = build_mlp(replace(mlp, widths=(8, 32, 32, 9)) if new_head else mlp)
    model = transfer.build_fine_tuned(shape, weights=old.state_dict())
    parameters, trained = dict(model.named_parameters()), dict(old.named_parameters())
    kept = [n for n in parameters if not (new_head and n.startswith("6."))]
    assert all(torch.equal(parameters[n], trained[n]) for n in kept)
    # A linear layer and the norm that follows it, twice, then the head.
    layers = ("0", "1", "3", "4")[: 2 * frozen]
    fixed = {n for n, p in parameters.items() if not p.requires_grad}
    assert fixed == {f"{i}.{n}" for i in layers for n in ("weight", "bias")}


@pytest.mark.parametrize("seed", range(3))
def test_what_was_learned_before_helps_where_the_tasks_are_alike(seed):
    ranges = transfer.FineTuningRanges(frozen_share=0, new_head_share=0, similarity=(0.98, 0.98))
    family = transfer.FineTunedMLP(ranges)
    shape = family.sample_shape(torch.Generator().manual_seed(seed))
    problem = family.draw_problem(shape, make_draw(seed))
    rows = problem.rows(500, torch.Generator().manual_seed(0))
    models = problem.build_model(), build_mlp(shape.model.mlp)
    trained, fresh = (problem.loss(model, rows).item() for model in models)
    assert trained < 0.8 * fresh


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
    # Clusters are so far apart that the labels of new rows, which are clean, name them all.
    clean, right = problem.new_rows(2000, make_draw().generator)
    for rows, imbalance, expected in (
        (problem.rows, 10, 0.3 * 3 / 4 * noisy),
        (problem.new_rows, 1 if balanced else 10, 0),
    ):
        seen, labels = rows(20_000, make_draw(1).generator)
        truth = right[torch.cdist(seen, clean).argmin(1)]
        shares = torch.bincount(truth).double()
        assert shares.max() / shares.min() == pytest.approx(imbalance, rel=0.15)
        assert float((truth != labels).double().mean()) == pytest.approx(expected, abs=0.01)
