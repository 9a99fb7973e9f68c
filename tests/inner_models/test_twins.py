"""Any module and loss: N runs trained together against one run in plain torch, number by number."""

import warnings
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence

from pacesetter.inner_models.engine.plain import ReferenceRun
from pacesetter.inner_models.engine.trainer import InnerTrainer
from pacesetter.inner_models.task import ModuleTask, OptimizerConfig, Splits

ROWS, BATCH, STEPS = 18, 6, 3
SHAPES = {"vector": (4,), "series": (5, 4), "image": (2, 6, 6), "line": (2, 7), "ids": (5,)}


class Apply(nn.Module):
    """A module, and a way to call it."""

    def __init__(self, module, call):
        super().__init__()
        self.module, self.call = module, call

    def forward(self, x):
        return self.call(self.module, x)


def weighed(outputs):
    """One number per row that depends on every output in a way of its own."""
    flat = outputs.flatten(1)
    return (flat * torch.linspace(-1, 2, flat.shape[1], dtype=flat.dtype)).mean(1)


def squares(model, batch):
    return F.mse_loss(weighed(model(batch[0])), batch[1])


@dataclass(frozen=True)
class Case:
    build: object
    inputs: str = "vector"
    loss: object = squares
    targets: str = "numbers"
    culprit: str | None = None  # what the warning names; None: it is batched
    traced: bool = False  # also as a trace
    shared: bool = True  # siblings look at one batch; else at a view each


def make_tasks(case, seeds=(1, 2)):
    return [make_task(case, seed) for seed in seeds]


def make_task(case, seed):
    generator = torch.Generator().manual_seed(seed)

    def split(rows):
        shape = (rows, *SHAPES[case.inputs])
        if case.inputs == "ids":
            x = torch.randint(7, shape, generator=generator)
        else:
            x = torch.randn(shape, generator=generator, dtype=torch.float64)
        y = torch.randn(rows, generator=generator, dtype=torch.float64)
        if case.targets == "labels":
            y = torch.randint(3, (rows,), generator=generator)
        elif case.targets == "rows":
            y = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
        return x, y

    return ModuleTask(
        case.build,
        case.loss,
        Splits(split(ROWS), *(split(BATCH) for _ in range(3)), allow_overlap=True),
        horizon=STEPS,
        batch_size=BATCH,
        # Not Adam: it makes a step of full length of a gradient that is zero but for rounding, as
        # is that of a bias before a BatchNorm.
        optimizer=OptimizerConfig(name="sgd", weight_decay=0.1),
        name="some task",
        seed=seed,
    )


def stack(*layers):
    return lambda: nn.Sequential(*(layer() for layer in layers))


def of(make, call):
    return lambda: Apply(make(), call)


def linear(outputs=4):
    return nn.Linear(4, outputs)


def conv(dims=2, outputs=4, kernel=3, **options):
    return (nn.Conv1d, nn.Conv2d)[dims - 1](2, outputs, kernel, **options)


class Tied(nn.Module):
    """One parameter under two names."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(7, 3), nn.Linear(3, 7, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x):
        return self.out(self.embed(x))


class Peeks(nn.Module):
    """Looks at a number."""

    def forward(self, x):
        return x if x.mean().item() > 1e9 else x * 2


def peeking():
    """The module that looks is named, however deep it lies."""
    layers = {"norm": nn.BatchNorm1d(4), "strange": Peeks(), "out": linear(2)}
    return nn.ModuleDict({"encoder": nn.Sequential(OrderedDict(layers))})


def parts_by_themselves(model, batch):
    """A loss that never calls the model as a whole."""
    states = model["encode"](batch[0])[0]
    return F.mse_loss(model["decode"](states)[:, -1, 0], batch[1])


def padded_embedding():
    return nn.Embedding(7, 3, padding_idx=2)


CASES = {
    "linear": Case(linear, traced=True),
    "embedding": Case(lambda: nn.Embedding(7, 3), "ids"),
    "embedding with padding": Case(padded_embedding, "ids", traced=True),
    "embedding with max_norm": Case(
        stack(lambda: nn.Embedding(7, 3, max_norm=1.0)), "ids", culprit="`0` (Embedding)"
    ),
    "layer norm": Case(stack(linear, lambda: nn.LayerNorm(4))),
    "group norm": Case(stack(conv, lambda: nn.GroupNorm(2, 4)), "image"),
    "prelu": Case(stack(linear, nn.PReLU)),
    "relu in place": Case(stack(linear, lambda: nn.ReLU(inplace=True))),
    "spectral norm": Case(
        lambda: parametrizations.spectral_norm(linear()),
        culprit="`parametrizations.weight.0` (_SpectralNorm)",
    ),
    "batch norm of vectors": Case(stack(linear, lambda: nn.BatchNorm1d(4))),
    "batch norm": Case(stack(conv, lambda: nn.BatchNorm2d(4)), "image"),
    "batch norm with a mean of all": Case(
        stack(conv, lambda: nn.BatchNorm2d(4, momentum=None)), "image", traced=True
    ),
    "grouped conv1d": Case(partial(conv, 1, groups=2), "line"),
    "circular conv": Case(partial(conv, padding=1, padding_mode="circular"), "image"),
    "transposed conv": Case(
        lambda: nn.ConvTranspose2d(2, 4, 3, stride=2, output_padding=1, groups=2), "image"
    ),
    "max pooling": Case(stack(conv, lambda: nn.MaxPool2d(2)), "image", traced=True),
    "overlapping max pooling": Case(
        stack(partial(conv, 1), lambda: nn.MaxPool1d(3, 1, padding=1)), "line"
    ),
    "mean pooling": Case(stack(conv, lambda: nn.AdaptiveAvgPool2d(2)), "image"),
    "instance norm": Case(
        stack(conv, lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True)), "image"
    ),
    "tied weights": Case(Tied, "ids"),
    "a look at numbers": Case(
        peeking, loss=lambda m, b: squares(m["encoder"], b), culprit="`encoder.strange` (Peeks)"
    ),
    "a loss that looks at numbers": Case(
        linear,
        loss=lambda m, b: squares(m, b) * (1 if b[0].sum().item() > 1e9 else 2),
        culprit="its loss",
    ),
    "parts called by the loss": Case(
        lambda: nn.ModuleDict(
            {"encode": nn.GRU(4, 3, batch_first=True), "decode": nn.Linear(3, 1)}
        ),
        "series",
        parts_by_themselves,
        traced=True,
    ),
}


# -- recurrent layers -----------------------------------------------------------------------------


def outputs(module, x):
    return module(x)[0] if module.batch_first else module(x.transpose(0, 1))[0].transpose(0, 1)


def last_states(module, x):
    states = module(x)[1]
    states = states if isinstance(states, tuple) else (states,)
    return torch.cat([s.transpose(0, 1).flatten(1) for s in states], 1)


def packed(module, x):
    lengths = [x.shape[1]] * len(x)
    return module["rnn"](pack_padded_sequence(x.detach(), lengths, batch_first=True))[1][0]


def subclass(kind):
    return type("Mine", (kind,), {"forward": lambda s, x: kind.forward(s, x)[0] * 2})


BOTH_WAYS = {"batch_first": True, "num_layers": 2, "bidirectional": True}
for kind in (nn.GRU, nn.LSTM):
    for options in ({"batch_first": True}, {"bias": False}, BOTH_WAYS):
        CASES[f"{kind.__name__} {options}"] = Case(
            of(partial(kind, 4, 3, **options), outputs), "series", traced=len(options) == 1
        )
    CASES[f"{kind.__name__}, last states"] = Case(
        of(partial(kind, 4, 3, batch_first=True), last_states), "series", traced=True
    )
    CASES[f"{kind.__name__}, called by a subclass"] = Case(
        partial(subclass(kind), 4, 3, batch_first=True), "series"
    )
CASES |= {
    "LSTM with projection": Case(
        of(lambda: nn.LSTM(4, 3, proj_size=2), outputs), "series", culprit="`module` (LSTM)"
    ),
    "GRU over one row at a time": Case(
        of(lambda: nn.GRU(4, 3), lambda m, x: torch.stack([m(row)[0] for row in x])), "series"
    ),
    "GRU of a packed sequence": Case(
        of(lambda: nn.ModuleDict({"rnn": nn.GRU(4, 3, batch_first=True)}), packed),
        "series",
        culprit="`the model` (Apply)",
    ),
    "GRUCell": Case(stack(lambda: nn.GRUCell(4, 3)), culprit="`0` (GRUCell)"),
}


# -- attention ------------------------------------------------------------------------------------


def causal(x):
    return nn.Transformer.generate_square_subsequent_mask(5, dtype=x.dtype)


def padded(x):
    """Marks some steps as padding, but the first of no row."""
    return (x[..., 0] > 0.5) & (torch.arange(x.shape[1]) > 0)


def attend_blindly(module, x):
    """Masks that leave some queries nothing to look at, as left padding does."""
    hidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
    hidden[:2] = True
    x = x.transpose(0, 1)  # batch_first would have torch's fused kernel give NaNs in evaluation
    return module(x, x, x, attn_mask=hidden, need_weights=False)[0].transpose(0, 1)


def attending(call, **options):
    """Output of attention, and its weights as far as there are any."""

    def joined(module, x):
        return torch.cat([r.flatten(1) for r in call(module, x) if r is not None], 1)

    return Case(of(partial(nn.MultiheadAttention, 4, 2, **options), joined), "series")


SELF = {
    "plain": lambda x: {},
    "mask": lambda x: {"attn_mask": causal(x)},
    "causal": lambda x: {"attn_mask": causal(x), "is_causal": True},
    "mask per row": lambda x: {"attn_mask": causal(x).repeat(2 * len(x), 1, 1)},
    "padding": lambda x: {"key_padding_mask": padded(x)},
    "padding and mask": lambda x: {"key_padding_mask": padded(x), "attn_mask": causal(x) < 0},
}
for name, options in SELF.items():
    for weights in (True, False):
        CASES[f"attention, {name}, weights {weights}"] = attending(
            lambda m, x, o=options, w=weights: m(x, x, x, need_weights=w, **o(x)), batch_first=True
        )
CASES |= {
    "attention, other keys": attending(lambda m, x: m(x, x * 2, x + 1), batch_first=True),
    "attention, no batch": Case(
        of(
            lambda: nn.MultiheadAttention(4, 2),
            lambda m, x: torch.stack([m(r, r, r, need_weights=False)[0] for r in x]),
        ),
        "series",
    ),
    "attention, other widths": attending(
        lambda m, x: m(x, x[..., :3], x[..., :2])[:1], batch_first=True, kdim=3, vdim=2, bias=False
    ),
    "attention, extra keys": attending(
        lambda m, x: m(x, x, x, need_weights=False, key_padding_mask=padded(x)),
        batch_first=True,
        add_bias_kv=True,
        add_zero_attn=True,
    ),
    "attention, nothing to look at": Case(
        of(lambda: nn.MultiheadAttention(4, 2), attend_blindly), "series"
    ),
}


def encoder_layer():
    return nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)


def encoder():
    return nn.TransformerEncoder(encoder_layer(), 2, enable_nested_tensor=False)


def decoder():
    layer = nn.TransformerDecoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
    return nn.TransformerDecoder(layer, 2)


def transformer():
    return nn.Transformer(4, 2, 1, 1, 6, dropout=0.0, batch_first=True)


class Heads(nn.Module):
    """Attention as users write it."""

    def __init__(self, options):
        super().__init__()
        self.project, self.options = nn.Linear(4, 12), options

    def forward(self, x):
        q, k, v = self.project(x).view(*x.shape[:2], 3, 2, 2).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v, **self.options(x)).transpose(1, 2)


for name, build, traced in (
    ("encoder layer", encoder_layer, True),
    ("encoder", encoder, False),
    ("encoder with a mask", of(encoder, lambda m, x: m(x, mask=causal(x))), True),
    ("causal encoder", of(encoder, lambda m, x: m(x, mask=causal(x), is_causal=True)), False),
    ("decoder", of(decoder, lambda m, x: m(x, x * 2, tgt_mask=causal(x))), True),
    (
        "transformer",
        of(transformer, lambda m, x: m(x, x * 2, tgt_mask=causal(x), tgt_is_causal=True)),
        False,
    ),
    ("scaled dot product", lambda: Heads(lambda x: {"is_causal": True}), True),
    ("masked dot product", lambda: Heads(lambda x: {"attn_mask": causal(x) == 0}), True),
):
    CASES[name] = Case(build, "series", traced=traced)


# -- losses ---------------------------------------------------------------------------------------

WEIGHTS = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
LOSSES = {
    "mse": F.mse_loss,
    "huber": partial(F.huber_loss, delta=0.7),
    "kl": lambda out, y: F.kl_div(out.log_softmax(1), y.softmax(1), reduction="batchmean"),
    "soft targets": lambda out, y: F.cross_entropy(out, y.softmax(1), label_smoothing=0.1),
}
LABEL_LOSSES = {
    "cross entropy": F.cross_entropy,
    "everything": partial(F.cross_entropy, weight=WEIGHTS, ignore_index=1, label_smoothing=0.1),
    "nll": lambda out, y: F.nll_loss(out.log_softmax(1), y),
}
for targets, losses in (("rows", LOSSES), ("labels", LABEL_LOSSES)):
    for name, loss in losses.items():
        CASES[f"{targets}: {name}"] = Case(
            partial(linear, 3),
            loss=lambda model, batch, loss=loss: loss(model(batch[0]), batch[1]),
            targets=targets,
            culprit="its loss" if name == "kl" else None,
            traced=name == "everything",
            shared=name != "huber",
        )


def check(case, *, traced):
    tasks = make_tasks(case)
    trainer = InnerTrainer(tasks, siblings=2, dtype=torch.float64, traced=traced)
    rates = 10.0 ** np.random.default_rng(0).uniform(-3, -1.5, (STEPS, 4))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.run(rates, momentum=np.full(4, 0.9))
        ends = [trainer.parameters(run) | trainer.buffers(run) for run in range(4)]
        losses = trainer.evaluate("test")
    messages = [str(w.message) for w in caught]
    if case.culprit is None:
        assert messages == []
    else:
        assert len(messages) == 1
        assert f"'some task': torch.func.vmap cannot batch {case.culprit}, so" in messages[0]
    assert trainer._program.batched == (case.culprit is None)
    form = "_one_by_one" if case.culprit else "_shared_batch" if case.shared else "_batch_each"
    assert trainer._program._forms[0].__name__ == form
    assert (trainer._program._program is not None) == traced
    for run, end in enumerate(ends):
        plain = ReferenceRun(tasks[run // 2], dtype=torch.float64)
        for rate in rates[:, run]:
            plain.step(lr=rate, momentum=0.9)
        wanted = dict(plain.model.named_parameters()) | dict(plain.model.named_buffers())
        assert end.keys() == wanted.keys()
        for name, value in end.items():
            assert torch.allclose(value, wanted[name], rtol=1e-9, atol=1e-9), name
        assert losses[run] == pytest.approx(plain.evaluate("test"), rel=1e-9)
    assert losses[0] != losses[1]


@pytest.mark.parametrize("name", CASES)
def test_n_runs_are_n_plain_runs(name):
    check(CASES[name], traced=False)


QUICK = {"linear", "embedding with padding", "LSTM, last states", "encoder layer", "max pooling"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name, case in CASES.items()
        if case.traced
    ],
)
def test_traced_they_are_n_plain_runs_too(name):
    check(CASES[name], traced=True)
