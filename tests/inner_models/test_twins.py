"""Any module and loss: N runs trained together against one run in plain torch, number by number."""

import warnings
from dataclasses import dataclass

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
SHAPES = {"vector": (4,), "series": (5, 4), "steps first": (BATCH, 4), "image": (2, 6, 6)}
SHAPES |= {"line": (2, 7), "ids": (5,)}


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


def of(make, call, **later):
    return lambda: Apply(make(), lambda module, x: call(module, x, **later))


def linear(outputs=4):
    return nn.Linear(4, outputs)


def conv(dims=2, outputs=4, kernel=3, **options):
    return (nn.Conv1d, nn.Conv2d)[dims - 1](2, outputs, kernel, **options)


CASES = {
    "linear": Case(linear, traced=True),
    "embedding bag": Case(
        stack(lambda: nn.EmbeddingBag(7, 3, padding_idx=2)), "ids", culprit="`0` (EmbeddingBag)"
    ),
    "embedding": Case(lambda: nn.Embedding(7, 3), "ids"),
    "embedding with padding": Case(lambda: nn.Embedding(7, 3, padding_idx=2), "ids", traced=True),
    "embedding with max_norm": Case(
        stack(lambda: nn.Embedding(7, 3, max_norm=1.0)), "ids", culprit="`0` (Embedding)"
    ),
    "layer norm": Case(stack(linear, lambda: nn.LayerNorm(4))),
    "rms norm": Case(stack(linear, lambda: nn.RMSNorm(4))),
    "group norm": Case(stack(conv, lambda: nn.GroupNorm(2, 4)), "image"),
    "prelu": Case(stack(linear, nn.PReLU)),
    "relu in place": Case(stack(linear, lambda: nn.ReLU(inplace=True))),
    "spectral norm": Case(
        lambda: parametrizations.spectral_norm(linear()),
        culprit="`parametrizations.weight.0` (_SpectralNorm)",
    ),
}
for dims, inputs in ((1, "line"), (2, "image")):
    for name, options in {
        "": {},
        "groups": {"groups": 2},
        "circular": {"padding": 1, "padding_mode": "circular"},
    }.items():
        CASES[f"conv{dims}d {name}"] = Case(
            lambda dims=dims, options=options: conv(dims, **options), inputs
        )
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d)[dims - 1]
    CASES[f"conv{dims}d transposed"] = Case(
        lambda make=transposed: make(2, 4, 3, stride=2, output_padding=1, groups=2), inputs
    )
    dim = f"{dims}d"
    for make, arguments, named in (
        ("MaxPool", (2,), {}),
        ("MaxPool", (3,), {"stride": 1, "padding": 1}),
        ("AdaptiveAvgPool", (2,), {}),
    ):
        CASES[f"{make}{dim} {named or ''}"] = Case(
            stack(
                lambda dims=dims: conv(dims, kernel=2),
                lambda make=make + dim, arguments=arguments, named=named: getattr(nn, make)(
                    *arguments, **named
                ),
            ),
            inputs,
            traced=make == "MaxPool" and dims == 2,
        )
    for options in ({"affine": True, "track_running_stats": True},):
        CASES[f"InstanceNorm{dim} {options}"] = Case(
            stack(
                lambda dims=dims: conv(dims),
                lambda dim=dim, options=options: getattr(nn, f"InstanceNorm{dim}")(4, **options),
            ),
            inputs,
        )
    for options in ({}, {"momentum": None}):
        CASES[f"BatchNorm{dim} {options}"] = Case(
            stack(
                (lambda dims=dims: conv(dims)) if dims > 1 else linear,
                lambda dim=dim, options=options: getattr(nn, f"BatchNorm{dim}")(4, **options),
            ),
            inputs if dims > 1 else "vector",
            traced="momentum" in options,
        )

for kind in (nn.GRU, nn.LSTM):
    for options in (
        {"batch_first": True},
        {"bias": False},
        {"batch_first": True, "num_layers": 2, "bidirectional": True},
    ):
        first = options.get("batch_first", False)
        CASES[f"{kind.__name__} {options}"] = Case(
            of(
                lambda kind=kind, options=options: kind(4, 3, **options),
                lambda m, x, first: m(x)[0] if first else m(x.transpose(0, 1))[0].transpose(0, 1),
                first=first,
            ),
            "series",
            traced=len(options) == 1,
        )
    CASES[f"{kind.__name__}, last states"] = Case(
        of(
            lambda kind=kind: kind(4, 3, batch_first=True),
            lambda m, x: torch.cat(
                [torch.as_tensor(s).flatten(0, 1) for s in last_states(m, x)], 1
            ),
        ),
        "series",
        traced=True,
    )
    CASES[f"{kind.__name__}, called by a subclass"] = Case(
        lambda kind=kind: type(
            "Mine", (kind,), {"forward": lambda s, x: kind.forward(s, x)[0] * 2}
        )(4, 3, batch_first=True),
        "series",
    )
CASES |= {
    "LSTM with projection": Case(
        of(lambda: nn.LSTM(4, 3, proj_size=2, batch_first=True), lambda m, x: m(x)[0]),
        "series",
        culprit="`module` (LSTM)",
    ),
    "RNN": Case(
        of(lambda: nn.RNN(4, 3, batch_first=True), lambda m, x: m(x)[0]),
        "series",
        culprit="`module` (RNN)",
    ),
    "GRU over one row at a time": Case(
        of(lambda: nn.GRU(4, 3), lambda m, x: torch.stack([m(row)[0] for row in x])), "series"
    ),
    "GRU of a packed sequence": Case(
        of(
            lambda: nn.ModuleDict({"rnn": nn.GRU(4, 3, batch_first=True)}),
            lambda m, x: m["rnn"](pack_padded_sequence(x.detach(), [5] * len(x), batch_first=True))[
                1
            ][0],
        ),
        "series",
        culprit="`the model` (Apply)",
    ),
    "GRUCell": Case(stack(lambda: nn.GRUCell(4, 3)), culprit="`0` (GRUCell)"),
}


def last_states(module, x):
    states = module(x)[1]
    states = states if isinstance(states, tuple) else (states,)
    return [s.transpose(0, 1)[..., None] for s in states]


def causal(x, steps):
    return nn.Transformer.generate_square_subsequent_mask(steps, dtype=x.dtype)


def attention(**options):
    return lambda: nn.MultiheadAttention(4, 2, **options)


def padded(x):
    """Marks some steps as padding, but the first of no row."""
    mask = x[..., 0] > 0.5
    return mask & (torch.arange(x.shape[1]) > 0)


def attend_blindly(module, x):
    """Masks that leave some queries nothing to look at, as left padding does."""
    hidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
    hidden[:2] = True
    x = x.transpose(0, 1)  # batch_first would have torch's fused kernel give NaNs in evaluation
    return module(x, x, x, attn_mask=hidden, need_weights=False)[0].transpose(0, 1)


for weights in (True, False):
    for name, call in {
        "": lambda m, x, w: m(x, x, x, need_weights=w),
        "mask": lambda m, x, w: m(x, x, x, need_weights=w, attn_mask=causal(x, 5)),
        "causal": lambda m, x, w: m(
            x, x, x, need_weights=w, attn_mask=causal(x, 5), is_causal=True
        ),
        "bool mask": lambda m, x, w: m(x, x, x, need_weights=w, attn_mask=causal(x, 5) < 0),
        "mask per row": lambda m, x, w: m(
            x, x, x, need_weights=w, attn_mask=causal(x, 5).repeat(2 * len(x), 1, 1)
        ),
        "padding": lambda m, x, w: m(x, x, x, need_weights=w, key_padding_mask=padded(x)),
        "padding and mask": lambda m, x, w: m(
            x, x, x, need_weights=w, key_padding_mask=padded(x), attn_mask=causal(x, 5) < 0
        ),
        "other keys": lambda m, x, w: m(x, x * 2, x + 1, need_weights=w),
    }.items():
        CASES[f"attention, {name}, weights {weights}"] = Case(
            of(
                attention(batch_first=True),
                lambda m, x, attend, weights: joined(attend(m, x, weights)),
                attend=call,
                weights=weights,
            ),
            "series",
            traced=name == "padding",
        )


def joined(results):
    """Output and weights of attention, as far as there are any."""
    return torch.cat([r.flatten(1) for r in results if r is not None], 1)


CASES |= {
    "attention, no batch": Case(
        of(attention(), lambda m, x: torch.stack([m(r, r, r, need_weights=False)[0] for r in x])),
        "series",
    ),
    "attention, other widths": Case(
        of(
            attention(batch_first=True, kdim=3, vdim=2, bias=False),
            lambda m, x: m(x, x[..., :3], x[..., :2])[0],
        ),
        "series",
    ),
    "attention, extra keys": Case(
        of(
            attention(batch_first=True, add_bias_kv=True, add_zero_attn=True),
            lambda m, x: m(x, x, x, need_weights=False, key_padding_mask=padded(x))[0],
        ),
        "series",
    ),
    "attention, nothing to look at": Case(of(attention(), attend_blindly), "series"),
}


def encoder_layer(**options):
    return nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, **options)


def encoder(**options):
    layer = encoder_layer(batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def decoder_layer():
    return nn.TransformerDecoderLayer(4, 2, 6, dropout=0.0, batch_first=True)


CASES |= {
    "encoder layer": Case(lambda: encoder_layer(batch_first=True), "series", traced=True),
    "encoder": Case(encoder, "series"),
    "encoder with a mask": Case(
        of(encoder, lambda m, x: m(x, mask=causal(x, 5))), "series", traced=True
    ),
    "encoder with a causal mask": Case(
        of(encoder, lambda m, x: m(x, mask=causal(x, 5), is_causal=True)), "series"
    ),
    "decoder": Case(
        of(
            lambda: nn.TransformerDecoder(decoder_layer(), 2),
            lambda m, x: m(x, x * 2, tgt_mask=causal(x, 5)),
        ),
        "series",
        traced=True,
    ),
    "transformer": Case(
        of(
            lambda: nn.Transformer(4, 2, 1, 1, 6, dropout=0.0, batch_first=True),
            lambda m, x: m(x, x * 2, tgt_mask=causal(x, 5), tgt_is_causal=True),
        ),
        "series",
    ),
}


class Heads(nn.Module):
    """Attention as users write it."""

    def __init__(self, **options):
        super().__init__()
        self.project, self.options = nn.Linear(4, 12), options

    def forward(self, x):
        q, k, v = self.project(x).view(*x.shape[:2], 3, 2, 2).permute(2, 0, 3, 1, 4)
        options = {n: o(x) if callable(o) else o for n, o in self.options.items()}
        return F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2)


for name, options in {
    "causal": {"is_causal": True},
    "bool mask": {"attn_mask": lambda x: causal(x, 5) == 0},
}.items():
    CASES[f"scaled dot product, {name}"] = Case(
        lambda options=options: Heads(**options), "series", traced=True
    )


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


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.strange, self.out = nn.BatchNorm1d(4), Peeks(), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.strange(self.norm(x)))


def parts_by_themselves(model, batch):
    """A loss that never calls the model as a whole."""
    states = model["encode"](batch[0])[0]
    return F.mse_loss(model["decode"](states)[:, -1, 0], batch[1])


CASES |= {
    "tied weights": Case(Tied, "ids"),
    "a look at numbers": Case(
        lambda: nn.ModuleDict({"encoder": Encoder()}),
        loss=lambda m, b: squares(m["encoder"], b),
        culprit="`encoder.strange` (Peeks)",
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

WEIGHTS = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
LOSSES = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "huber": lambda out, y: F.huber_loss(out, y, delta=0.7),
    "kl": lambda out, y: F.kl_div(out.log_softmax(1), y.softmax(1), reduction="batchmean"),
    "soft targets": lambda out, y: F.cross_entropy(out, y.softmax(1), label_smoothing=0.1),
}
LABEL_LOSSES = {
    "cross entropy": F.cross_entropy,
    "everything": lambda out, y: F.cross_entropy(
        out, y, WEIGHTS, ignore_index=1, label_smoothing=0.1
    ),
    "nll": lambda out, y: F.nll_loss(out.log_softmax(1), y),
}
for targets, losses in (("rows", LOSSES), ("labels", LABEL_LOSSES)):
    for name, loss in losses.items():
        CASES[f"{targets}: {name}"] = Case(
            lambda: linear(3),
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


QUICK = {"linear", "embedding with padding", "LSTM, last states", "encoder layer", "MaxPool2d "}


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
