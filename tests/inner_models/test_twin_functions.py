"""Each twin against the function of torch that it stands for; dropout and random numbers."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from pacesetter.inner_models.engine.trainer import InnerTrainer
from pacesetter.inner_models.task import ModuleTask, Splits
from pacesetter.inner_models.twins import substitution as twins

DOUBLE = torch.float64


def numbers(*shape, seed=0, dtype=DOUBLE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def flat(results):
    """The tensors of a nested tuple."""
    if isinstance(results, torch.Tensor):
        return [results]
    return [t for r in results if r is not None for t in flat(r)]


def with_gradients(call, leaves):
    """Results and gradients of a function for random gradients of all its results."""
    results = flat(call())
    grads = [numbers(*r.shape, seed=i, dtype=r.dtype) for i, r in enumerate(results)]
    return [*results, *torch.autograd.grad(results, leaves, grads)]


def assert_twin(call, leaves, *, tolerance=1e-12, model=None):
    """A call gives the same with twins as without, and so do its gradients."""
    wanted = with_gradients(call, leaves)
    with twins.twins(model or nn.Identity()):
        found = with_gradients(call, leaves)
    for left, right in zip(found, wanted, strict=True):
        assert left.shape == right.shape
        size = max(1.0, float(right.detach().abs().max()))
        assert float((left - right).detach().abs().max()) <= tolerance * size


@pytest.mark.parametrize("make", [nn.GRU, nn.LSTM])
@pytest.mark.parametrize(("single", "given"), [(False, False), (False, True), (True, True)])
def test_recurrent_layers_equal_those_of_torch(make, single, given):
    batch = () if single else (5,)
    for layers, both, bias, first in product((1, 2), *[(False, True)] * 3):
        options = {"num_layers": layers, "bidirectional": both, "bias": bias, "batch_first": first}
        torch.manual_seed(0)
        model = make(4, 3, **options).double()
        x = numbers(*((*batch, 6, 4) if first else (6, *batch, 4))).requires_grad_()
        leaves, start = [x, *model.parameters()], None
        if given:
            seeds = (0, 1) if make is nn.LSTM else (0,)
            states = [numbers(layers * (1 + both), *batch, 3, seed=i) for i in seeds]
            leaves += [s.requires_grad_() for s in states]
            start = tuple(states) if make is nn.LSTM else states[0]
        assert_twin(lambda m=model, x=x, s=start: m(x, s), leaves, model=model)


def test_dropout_between_layers_drops_between_layers_only():
    torch.manual_seed(0)
    model = nn.GRU(4, 3, num_layers=2, dropout=1.0).double()
    # Nothing of the first layer reaches the second, which is itself left alone.
    one, two = (twins.swap_twins(model)(numbers(6, 5, 4, seed=seed))[0] for seed in range(2))
    assert torch.equal(one, two)
    assert one.abs().min() > 0
    model.eval()
    x = numbers(6, 5, 4)
    assert torch.allclose(twins.swap_twins(model)(x)[0], model(x)[0], atol=1e-12)


def test_recurrent_layers_do_not_ask_cudnn_to_flatten_what_is_batched(monkeypatch):
    model = nn.LSTM(4, 3)
    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", None)  # fails where it is called
    stacked = {n: torch.stack([p.detach()] * 2) for n, p in model.named_parameters()}
    twin = twins.swap_twins(model)
    out = vmap(lambda p: functional_call(twin, p, (torch.zeros(6, 5, 4),))[0])(stacked)
    assert out.shape == (2, 6, 5, 3)


@pytest.mark.parametrize(
    ("dims", "shape", "kernel", "options"),
    [
        (1, (3, 7), 3, {}),
        (2, (2, 3, 6, 8), (3, 2), {}),
        (2, (2, 3, 7, 8), (1, 4), {"stride": (1, 4)}),
        (2, (2, 3, 7, 8), 3, {"stride": 2, "padding": 1}),
        (2, (2, 3, 7, 8), 2, {"ceil_mode": True}),
        (2, (2, 3, 9, 9), 2, {"dilation": 2}),
        (3, (2, 3, 4, 5, 6), 2, {}),
    ],
)
def test_max_pooling_hands_ties_to_the_first_as_torch_does(dims, shape, kernel, options):
    pool = getattr(F, f"max_pool{dims}d")
    ties = torch.randint(3, shape, generator=torch.Generator().manual_seed(0)).double()
    for x in (ties.requires_grad_(), numbers(*shape).requires_grad_()):
        assert_twin(lambda x=x: pool(x, kernel, **options), [x], tolerance=0.0)


@pytest.mark.parametrize("space", [F, torch])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_common_max_pooling_is_ours(space, dims):
    x = numbers(2, 3, 4, 4)[..., 0] if dims == 1 else numbers(2, 3, 4, 4)
    with twins.twins(nn.Identity()):
        pooled = getattr(space, f"max_pool{dims}d")(x.requires_grad_(), 2)
        again, indices = getattr(F, f"max_pool{dims}d")(x, 2, return_indices=True)
    assert type(pooled.grad_fn).__name__ == "FirstMaxBackward"
    assert torch.equal(again, pooled)
    count = 1 if dims == 3 else 2
    assert torch.equal(x.flatten(count).gather(count, indices.flatten(count)), again.flatten(count))


def soft(logits, targets, *, one=False, **options):
    """Cross-entropy with chances as targets."""
    if one:
        logits, targets = logits[0], targets[0]
    return F.cross_entropy(logits, targets.softmax(-1), **options)


def hard(logits, _, *, ignore_index=-100, **options):
    """Cross-entropy with labels, some of which are ignored, as targets."""
    places = logits.shape[:1] + logits.shape[2:] if logits.ndim > 1 else ()
    labels = torch.randint(3, places, generator=torch.Generator().manual_seed(1))
    labels = torch.where(labels == 2, ignore_index, labels) if places else labels * 0 + 2
    return F.cross_entropy(50 * logits, labels, ignore_index=ignore_index, **options)


def embed(weight, _, **options):
    return F.embedding(torch.tensor([[0, 2, 2], [4, 4, 4], [1, 2, 4]]), weight, **options)


def attend(leaf, _, *, heads=2, mask=None, **options):
    """Attention of 4 queries to 5 keys."""
    query, key, value = leaf.split([4, 5, 5], dim=2)
    mask = None if mask is None else mask.expand(*mask.shape[:-1], 5)
    return F.scaled_dot_product_attention(query, key[:, :heads], value[:, :heads], mask, **options)


def combined(**choices):
    """Keyword arguments: every combination of the choices."""
    return [dict(zip(choices, chosen, strict=True)) for chosen in product(*choices.values())]


REDUCTION = {"reduction": ("none", "mean", "sum")}
WEIGHT = {"weight": (None, torch.tensor([0.5, 1.0, 2.0], dtype=DOUBLE))}
FUNCTIONS = {
    F.mse_loss: [((6, 3), options) for options in combined(**REDUCTION)],
    soft: [
        ((6, 3), options)
        for options in (
            *combined(label_smoothing=(0, 0.2), one=(0, 1), **WEIGHT),
            *combined(**REDUCTION),
        )
    ],
    hard: [
        (shape, options)
        for shape in ((6, 3), (6, 3, 4, 2), (3,))
        for options in combined(
            ignore_index=(-100, 1), label_smoothing=(0.0, 0.2), **WEIGHT, **REDUCTION
        )
    ],
    embed: [((5, 3), options) for options in combined(padding_idx=(None, 2, -1))],
    attend: [
        ((3, 2, 14, 6), options)
        for options in (
            {},
            {"is_causal": True},
            {"scale": 0.2},
            {"mask": numbers(4, 5, seed=7)},
            {"mask": numbers(1, 2, 4, 5, seed=7) > 0},
            {"mask": torch.tensor([[False], [True], [True], [False]])},  # nothing to look at
            {"heads": 1, "enable_gqa": True},  # fewer keys than queries
        )
    ],
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_equal_those_of_torch(function):
    for shape, options in FUNCTIONS[function]:
        x, other = numbers(*shape).requires_grad_(), numbers(*shape, seed=1)
        assert_twin(lambda x=x, y=other, o=options: function(x, y, **o), [x])


def test_older_names_are_known_and_bad_arguments_refused_as_torch_does():
    a, b, q = numbers(6, 3), numbers(6, 3, seed=1), numbers(1, 2, 4, 6)
    with twins.twins(nn.Identity()):
        with pytest.warns(UserWarning, match="size_average"):
            total = F.mse_loss(a, b, size_average=False)
        with pytest.raises(ValueError, match="'most' is not a valid"):
            F.mse_loss(a, b, reduction="most")
        with pytest.warns(UserWarning, match=r"\(3,\) differs.*\(6, 3\)"):
            F.mse_loss(a, b[0])
        with pytest.raises(RuntimeError, match="but got both"):
            F.scaled_dot_product_attention(q, q, q, numbers(4, 4), is_causal=True)
    assert torch.allclose(total, (a - b).square().sum())


class Mine(nn.GRU):
    """A user's own, of which we know nothing."""

    def forward(self, x):
        return x[0].flatten(0, 1)


def test_a_model_is_as_it_was_once_its_twin_has_run():
    model = nn.Sequential(nn.GRU(4, 3), Mine(4, 3), nn.BatchNorm1d(3, momentum=None))
    twin = twins.swap_twins(model)
    assert str(twin) == str(model)
    assert list(twin.modules())[1:] == list(model.modules())[1:]
    assert dict(twin.named_parameters()).keys() == dict(model.named_parameters()).keys()
    own, seen = [nn.GRU, Mine, nn.BatchNorm1d], []
    for layer in model:
        layer.register_forward_hook(lambda module, *_: seen.append(type(module)))
    with pytest.raises(RuntimeError, match=r"input\.size"):
        twin(torch.zeros(6, 5, 2))
    assert [type(m) for m in model] == own
    twin(torch.zeros(6, 5, 4))
    assert seen == [twins.MODULE_TWINS.get(kind, kind) for kind in own]
    assert [type(m) for m in model] == own
    assert torch.backends.mha.get_fastpath_enabled()


def drop_task(build):
    inputs = numbers(40, 5, 4, dtype=torch.float32)
    rows = (inputs, inputs[:, 0, 0])
    return ModuleTask(
        build,
        lambda m, b: F.mse_loss(m(b[0]).flatten(1).mean(1), b[1]),
        Splits(rows, rows, rows, rows, allow_overlap=True),
        horizon=10,
        batch_size=8,
        seed=1,
    )


class Call(nn.Module):
    """A layer and a way to use its outputs."""

    def __init__(self, call, layer=None):
        super().__init__()
        self.layer, self.call = layer or nn.Linear(4, 4), call

    def forward(self, x):
        return self.call(self.layer(x))


RANDOM = {
    "Dropout": lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)),
    "Dropout of the inputs": lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 4)),
    "Dropout1d": lambda: nn.Sequential(nn.Conv1d(5, 6, 1), nn.Dropout1d(0.5)),
    "AlphaDropout": lambda: nn.Sequential(nn.Linear(4, 4), nn.AlphaDropout(0.5)),
    "FeatureAlphaDropout": lambda: nn.Sequential(nn.Linear(4, 4), nn.FeatureAlphaDropout(0.5)),
    "attention": lambda: Call(lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)),
    "encoder layer": lambda: nn.TransformerEncoderLayer(4, 2, 6, dropout=0.5, batch_first=True),
    "LSTM": lambda: Call(
        lambda outputs: outputs[0], nn.LSTM(4, 4, num_layers=2, dropout=0.5, batch_first=True)
    ),
    "noise": lambda: Call(lambda x: x + torch.randn_like(x)),
}


def assert_shared_by_siblings_only(trainer):
    """Of one task twice: were it not for random numbers, all runs would be the same."""
    trainer.run(np.full((4, 4), 1e-2), momentum=np.full(4, 0.9))
    runs = [torch.cat([p.flatten() for p in trainer.parameters(r).values()]) for r in range(4)]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[2], runs[3])
    assert not torch.allclose(runs[0], runs[2])


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("traced", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_siblings_share_random_numbers_and_tasks_do_not(name, traced):
    trainer = InnerTrainer([drop_task(RANDOM[name])] * 2, siblings=2, traced=traced)
    assert_shared_by_siblings_only(trainer)
    assert trainer._program.batched
    assert (trainer._program._program is not None) == traced


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x * torch.empty_like(x).uniform_(0.5, 1.5),
        lambda x: x * torch.empty(5, 4).bernoulli_(0.5),
        lambda x: torch.distributions.Normal(x, 1.0).rsample(),
        lambda x: F.gumbel_softmax(x, hard=True),
    ],
)
def test_numbers_drawn_in_place_are_drawn_run_by_run_and_shared_by_siblings(call):
    trainer = InnerTrainer([drop_task(lambda: Call(call))] * 2, siblings=2)
    with pytest.warns(UserWarning, match=r"cannot batch `the model` \(Call\), so runs go one"):
        assert_shared_by_siblings_only(trainer)


def test_dropout_of_n_runs_is_distributed_as_torchs():
    torch.manual_seed(0)
    x = torch.ones(6, 200, 50)
    with twins.twins(nn.Identity()):
        dropped = vmap(lambda x: F.dropout(x, 0.2), randomness="different")(x)
        attended = vmap(
            lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5),
            randomness="different",
        )(x)
    assert float(dropped.std()) == pytest.approx(0.5, rel=0.02)
    assert [float(dropped.mean()), float(attended.mean())] == pytest.approx([1, 1], abs=0.05)
