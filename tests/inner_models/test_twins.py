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


def make_task(case, seed):
    generator = torch.Generator().manual_seed(seed)

    def split(rows):
        x = torch.randn(rows, *SHAPES[case.inputs], generator=generator, dtype=torch.float64)
        y = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
        targets = {"numbers": y[:, 0], "rows": y, "labels": y.argmax(1)}[case.targets]
        return (x.abs() * 3).long().clamp(max=6) if case.inputs == "ids" else x, targets

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


linear = partial(nn.Linear, 4, 4)
conv = partial(nn.Conv2d, 2, 4, 3)


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
    layers = {"norm": nn.BatchNorm1d(4), "strange": Peeks(), "out": linear()}
    return nn.ModuleDict({"encoder": nn.Sequential(OrderedDict(layers))})


def parts_by_themselves(model, batch):
    """A loss that never calls the model as a whole."""
    states = model["encode"](batch[0])[0]
    return F.mse_loss(model["decode"](states)[:, -1, 0], batch[1])


CASES = {
    "linear": Case(linear, traced=True),
    "embedding with padding": Case(partial(nn.Embedding, 7, 3, padding_idx=2), "ids", traced=True),
    "embedding with max_norm": Case(
        stack(lambda: nn.Embedding(7, 3, max_norm=1.0)), "ids", culprit="`0` (Embedding)"
    ),
    "layer norm": Case(stack(linear, lambda: nn.LayerNorm(4))),
    "group norm": Case(stack(conv, lambda: nn.GroupNorm(2, 4)), "image"),
    "relu in place": Case(stack(linear, lambda: nn.ReLU(inplace=True))),
    "batch norm": Case(stack(conv, lambda: nn.BatchNorm2d(4)), "image"),
    "batch norm with a mean of all": Case(
        stack(conv, lambda: nn.BatchNorm2d(4, momentum=None)), "image", traced=True
    ),
    "grouped conv1d": Case(partial(nn.Conv1d, 2, 4, 3, groups=2), "line"),
    "max pooling": Case(stack(conv, lambda: nn.MaxPool2d(2)), "image", traced=True),
    "instance norm": Case(
        stack(conv, lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True)), "image"
    ),
    "tied weights": Case(Tied, "ids"),
    "a look at numbers": Case(
        peeking, loss=lambda m, b: squares(m["encoder"], b), culprit="`encoder.strange` (Peeks)"
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


def last_states(module, x):
    states = module(x)[1]
    states = states if isinstance(states, tuple) else (states,)
    return torch.cat([s.transpose(0, 1).flatten(1) for s in states], 1)


def packed(module, x):
    lengths = [x.shape[1]] * len(x)
    return module(pack_padded_sequence(x.detach(), lengths, batch_first=True))[1][0]


def subclass(kind):
    return type("Mine", (kind,), {"forward": lambda s, x: kind.forward(s, x)[0] * 2})


BATCH_FIRST = {"batch_first": True}
BOTH_WAYS = {**BATCH_FIRST, "num_layers": 2, "bidirectional": True}
for kind in (nn.GRU, nn.LSTM):
    CASES[f"{kind.__name__}, last states"] = Case(
        of(partial(kind, 4, 3, **BATCH_FIRST), last_states), "series", traced=True
    )
    CASES[f"{kind.__name__}, called by a subclass"] = Case(
        partial(subclass(kind), 4, 3, **BOTH_WAYS), "series"
    )
CASES |= {
    "LSTM with projection": Case(
        of(partial(nn.LSTM, 4, 3, proj_size=2, **BATCH_FIRST), last_states),
        "series",
        culprit="`module` (LSTM)",
    ),
    "GRU over one row at a time": Case(
        of(lambda: nn.GRU(4, 3), lambda m, x: torch.stack([m(row)[0] for row in x])), "series"
    ),
    "GRU of a packed sequence": Case(
        of(partial(nn.GRU, 4, 3, **BATCH_FIRST), packed), "series", culprit="`the model` (Apply)"
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
    return [module(x, x, x, attn_mask=hidden, need_weights=False)[0].transpose(0, 1)]


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
    "attention, no batch": attending(
        lambda m, x: [torch.stack([m(r, r, r, need_weights=False)[0] for r in x])]
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
    "attention, nothing to look at": attending(attend_blindly),
}


SMALL = {"dropout": 0.0, "batch_first": True}
encoder_layer = partial(nn.TransformerEncoderLayer, 4, 2, 6, **SMALL)


def encoder():
    return nn.TransformerEncoder(encoder_layer(), 2, enable_nested_tensor=False)


def decoder():
    return nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, 6, **SMALL), 2)


for name, build, traced in (
    ("encoder layer", encoder_layer, True),
    ("encoder with a mask", of(encoder, lambda m, x: m(x, mask=causal(x))), True),
    ("causal encoder", of(encoder, lambda m, x: m(x, mask=causal(x), is_causal=True)), False),
    ("decoder", of(decoder, lambda m, x: m(x, x * 2, tgt_mask=causal(x))), True),
):
    CASES[name] = Case(build, "series", traced=traced)


# -- losses ---------------------------------------------------------------------------------------


def judged(loss, targets="rows", **options):
    """A linear layer under a loss of outputs and targets."""

    def called(model, batch):
        return loss(model(batch[0]), batch[1])

    return Case(partial(nn.Linear, 4, 3), loss=called, targets=targets, **options)


WEIGHTS = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
EVERYTHING = {"weight": WEIGHTS, "ignore_index": 1, "label_smoothing": 0.1}
CASES |= {
    "huber": judged(partial(F.huber_loss, delta=0.7), shared=False),
    "kl": judged(
        lambda out, y: F.kl_div(out.log_softmax(1), y.softmax(1), reduction="batchmean"),
        culprit="its loss",
    ),
    "labels": judged(partial(F.cross_entropy, **EVERYTHING), "labels", traced=True),
    "nll": judged(lambda out, y: F.nll_loss(out.log_softmax(1), y), "labels"),
}


QUICK = {"linear", "embedding with padding", "LSTM, last states", "encoder layer", "max pooling"}
TRACED = [
    pytest.param(name, True, marks=() if name in QUICK else pytest.mark.slow)
    for name, case in CASES.items()
    if case.traced
]


@pytest.mark.parametrize(("name", "traced"), [*((name, False) for name in CASES), *TRACED])
def test_n_runs_are_n_plain_runs(name, traced):
    case = CASES[name]
    tasks = [make_task(case, seed) for seed in (1, 2)]
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
