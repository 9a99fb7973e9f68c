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
SHAPES |= {"line": (2, 7), "volume": (2, 4, 4, 4), "ids": (5,)}


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
    return (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](2, outputs, kernel, **options)


CASES = {
    "linear": Case(linear, traced=True),
    "bilinear": Case(
        of(lambda: nn.Bilinear(3, 2, 4), lambda m, x: m(x[:, :3], x[:, 2:])), traced=True
    ),
    "embedding": Case(lambda: nn.Embedding(7, 3), "ids"),
    "embedding with padding": Case(lambda: nn.Embedding(7, 3, padding_idx=2), "ids", traced=True),
    "embedding, gradient by frequency": Case(
        lambda: nn.Embedding(7, 3, scale_grad_by_freq=True), "ids"
    ),
    "embedding with max_norm": Case(
        stack(lambda: nn.Embedding(7, 3, max_norm=1.0)), "ids", culprit="`0` (Embedding)"
    ),
    "layer norm": Case(stack(linear, lambda: nn.LayerNorm(4))),
    "rms norm": Case(stack(linear, lambda: nn.RMSNorm(4))),
    "group norm": Case(stack(conv, lambda: nn.GroupNorm(2, 4)), "image"),
    "prelu": Case(stack(linear, nn.PReLU)),
    "relu in place": Case(stack(linear, lambda: nn.ReLU(inplace=True))),
    "local response norm": Case(stack(conv, lambda: nn.LocalResponseNorm(2)), "image"),
    "dropout of nothing": Case(stack(linear, lambda: nn.Dropout(0.0))),
    "pixel shuffle": Case(stack(conv, lambda: nn.PixelShuffle(2)), "image"),
    "unfold": Case(stack(conv, lambda: nn.Unfold(2)), "image"),
    "upsample": Case(stack(conv, lambda: nn.Upsample(scale_factor=2)), "image"),
    "upsample, bilinear": Case(
        stack(conv, lambda: nn.Upsample(scale_factor=2, mode="bilinear")), "image"
    ),
    "weight norm": Case(lambda: parametrizations.weight_norm(linear()), traced=True),
    "weight norm of a convolution": Case(lambda: parametrizations.weight_norm(conv()), "image"),
    "spectral norm": Case(lambda: parametrizations.spectral_norm(linear()), traced=True),
    "spectral norm of a convolution": Case(lambda: parametrizations.spectral_norm(conv()), "image"),
}
for mode in ("sum", "mean", "max"):
    for padding in (None, 2):
        CASES[f"embedding bag, {mode}, padding {padding}"] = Case(
            lambda mode=mode, padding=padding: nn.EmbeddingBag(
                7, 3, mode=mode, padding_idx=padding
            ),
            "ids",
            traced=padding is not None,
        )
for dims, inputs in ((1, "line"), (2, "image"), (3, "volume")):
    for name, options in {
        "": {},
        "groups": {"groups": 2},
        "stride": {"stride": 2},
        "padding": {"padding": 1},
        "same": {"padding": "same"},
        "dilation": {"dilation": 2, "kernel": 2},
        "circular": {"padding": 1, "padding_mode": "circular"},
        "reflect": {"padding": 1, "padding_mode": "reflect"},
        "replicate": {"padding": 1, "padding_mode": "replicate", "bias": False},
    }.items():
        if dims == 3 and name in ("circular", "reflect", "same"):
            continue
        CASES[f"conv{dims}d {name}"] = Case(
            lambda dims=dims, options=options: conv(dims, **options), inputs
        )
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    for groups in (1, 2):
        CASES[f"conv{dims}d transposed, groups {groups}"] = Case(
            lambda make=transposed, groups=groups: make(
                2, 4, 3, stride=2, output_padding=1, groups=groups
            ),
            inputs,
        )
    dim = f"{dims}d"
    for make, arguments, named in (
        ("MaxPool", (2,), {}),
        ("MaxPool", (3,), {"stride": 1, "padding": 1}),
        ("MaxPool", (2,), {"ceil_mode": True}),
        ("AvgPool", (2,), {}),
        ("AdaptiveAvgPool", (2,), {}),
        ("AdaptiveMaxPool", (2,), {}),
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
    for options in ({}, {"affine": True}, {"affine": True, "track_running_stats": True}):
        CASES[f"InstanceNorm{dim} {options}"] = Case(
            stack(
                lambda dims=dims: conv(dims),
                lambda dim=dim, options=options: getattr(nn, f"InstanceNorm{dim}")(4, **options),
            ),
            inputs,
        )
    for options in ({}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}):
        CASES[f"BatchNorm{dim} {options}"] = Case(
            stack(
                (lambda dims=dims: conv(dims)) if dims > 1 else linear,
                lambda dim=dim, options=options: getattr(nn, f"BatchNorm{dim}")(4, **options),
            ),
            inputs if dims > 1 else "vector",
            traced="momentum" in options,
        )

for kind in (nn.GRU, nn.LSTM, nn.RNN):
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
        traced=True,
    ),
    "RNN with relu": Case(
        of(lambda: nn.RNN(4, 3, nonlinearity="relu", batch_first=True), lambda m, x: m(x)[0]),
        "series",
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
    "GRUCell": Case(of(lambda: nn.GRUCell(4, 3), lambda m, x: m(x)), traced=True),
    "LSTMCell": Case(of(lambda: nn.LSTMCell(4, 3), lambda m, x: torch.cat(m(x), 1)), traced=True),
    "RNNCell": Case(lambda: nn.RNNCell(4, 3)),
    "RNNCell with relu": Case(lambda: nn.RNNCell(4, 3, nonlinearity="relu")),
    "GRUCell over time": Case(
        of(lambda: nn.GRUCell(4, 3), lambda m, x: unrolled(m, x)), "series", traced=True
    ),
}


def last_states(module, x):
    states = module(x)[1]
    states = states if isinstance(states, tuple) else (states,)
    return [s.transpose(0, 1)[..., None] for s in states]


def unrolled(cell, x):
    state = None
    for step in x.unbind(1):
        state = cell(step, state)
    return state


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
    "attention, steps first": Case(
        of(attention(), lambda m, x: m(*[x.transpose(0, 1)] * 3)[0].transpose(0, 1)), "series"
    ),
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
    "encoder layer, norm first, gelu": Case(
        lambda: encoder_layer(batch_first=True, norm_first=True, activation="gelu"), "series"
    ),
    "encoder layer, steps first": Case(
        of(encoder_layer, lambda m, x: m(x.transpose(0, 1)).transpose(0, 1)), "series"
    ),
    "encoder": Case(encoder, "series"),
    "encoder with a mask": Case(
        of(encoder, lambda m, x: m(x, mask=causal(x, 5))), "series", traced=True
    ),
    "encoder with a causal mask": Case(
        of(encoder, lambda m, x: m(x, mask=causal(x, 5), is_causal=True)), "series"
    ),
    "encoder with padding": Case(
        of(encoder, lambda m, x: m(x, src_key_padding_mask=padded(x))), "series"
    ),
    "decoder layer": Case(of(decoder_layer, lambda m, x: m(x, x * 2)), "series"),
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


def allowed(x):
    return causal(x, 5) == 0


for name, options in {
    "": {},
    "causal": {"is_causal": True},
    "mask": {"attn_mask": lambda x: causal(x, 5)},
    "bool mask": {"attn_mask": allowed},
    "nothing to look at": {"attn_mask": lambda x: allowed(x) & (torch.arange(5) > 1)},
    "scale": {"scale": 0.3},
}.items():
    CASES[f"scaled dot product, {name}"] = Case(
        lambda options=options: Heads(**options), "series", traced=name in ("causal", "bool mask")
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
    return F.smooth_l1_loss(model["decode"](states)[:, -1, 0], batch[1])


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
    "mse, sum": lambda out, y: F.mse_loss(out, y, reduction="sum"),
    "l1": F.l1_loss,
    "smooth l1": lambda out, y: F.smooth_l1_loss(out, y, beta=0.5),
    "huber": lambda out, y: F.huber_loss(out, y, delta=0.7),
    "kl": lambda out, y: F.kl_div(out.log_softmax(1), y.softmax(1), reduction="batchmean"),
    "kl, log": lambda out, y: F.kl_div(
        out.log_softmax(1), y.log_softmax(1), reduction="sum", log_target=True
    ),
    "logits": lambda out, y: F.binary_cross_entropy_with_logits(out, y.sigmoid()),
    "weighted logits": lambda out, y: F.binary_cross_entropy_with_logits(
        out, y.sigmoid(), weight=WEIGHTS, pos_weight=WEIGHTS
    ),
    "probabilities": lambda out, y: F.binary_cross_entropy(out.sigmoid(), y.sigmoid()),
    "soft targets": lambda out, y: F.cross_entropy(out, y.softmax(1), label_smoothing=0.1),
    "gaussian": lambda out, y: F.gaussian_nll_loss(out, y, out.exp()),
    "poisson": F.poisson_nll_loss,
    "soft margin": lambda out, y: F.soft_margin_loss(out, y.sign()),
    "cosine": lambda out, y: F.cosine_embedding_loss(out, y, y[:, 0].sign()),
    "module": lambda out, y: nn.HuberLoss()(out, y),
}
LABEL_LOSSES = {
    "cross entropy": F.cross_entropy,
    "weights": lambda out, y: F.cross_entropy(out, y, WEIGHTS),
    "ignore": lambda out, y: F.cross_entropy(out, y, ignore_index=1),
    "smoothing": lambda out, y: F.cross_entropy(out, y, label_smoothing=0.1),
    "everything": lambda out, y: F.cross_entropy(
        out, y, WEIGHTS, ignore_index=1, label_smoothing=0.1
    ),
    "nll": lambda out, y: F.nll_loss(out.log_softmax(1), y),
    "weighted nll": lambda out, y: F.nll_loss(out.log_softmax(1), y, WEIGHTS, ignore_index=0),
}
for targets, losses in (("rows", LOSSES), ("labels", LABEL_LOSSES)):
    for name, loss in losses.items():
        CASES[f"{targets}: {name}"] = Case(
            lambda: linear(3),
            loss=lambda model, batch, loss=loss: loss(model(batch[0]), batch[1]),
            targets=targets,
            traced=name in ("kl", "everything", "gaussian"),
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
    # The fastest form, in which siblings look at one batch, is still the one that is used.
    assert (trainer._program._forms[0] == trainer._program._shared_batch) == (case.culprit is None)
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


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.traced])
def test_traced_they_are_n_plain_runs_too(name):
    check(CASES[name], traced=True)
