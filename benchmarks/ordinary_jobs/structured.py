"""Jobs on text, series, photographs and densities; most see each row once at most."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ordinary_jobs.base import (
    Batch,
    Setup,
    bundled,
    characters,
    cut,
    gen,
    job,
    mlp,
    patches,
    photo,
    windows,
)

TRAIN, VALID, TEST = (0, 440), (440, 540), (540, 640)
"""Columns of the photographs from which patches come."""


@job("densities", "choose", steps=1000, batch=32, floor=-2.5)
def mixture(seed: int) -> Setup:
    """A mixture density network on two noisy branches, one pass; losses fall below zero."""
    g = gen(11)
    x = 2 * torch.rand(36000, 1, generator=g) - 1
    side = 2.0 * torch.randint(2, (36000, 1), generator=g) - 1
    y = side * (0.5 + 0.5 * torch.sin(4 * x)) + 0.05 * torch.randn(36000, 1, generator=g)
    model = mlp(1, 48, 48, 12, act=nn.Tanh)

    def loss(b: Batch) -> Tensor:
        weight, mean, scale = model(b[0]).chunk(3, dim=1)
        each = -0.5 * ((b[1] - mean) / scale.exp()).pow(2) - scale - 0.919
        return -(weight.log_softmax(1) + each).logsumexp(1).mean()

    return Setup(model, loss, *cut((x, y), valid=2000, test=2000))


@job("densities", "report", steps=700, batch=64, floor=-1.5)
def vae(seed: int) -> Setup:
    """A variational autoencoder of 8 x 8 patches that learns its noise; nats per pixel."""
    x, valid, test = (
        patches(n, 8, seed=12, strip=s).flatten(1)
        for n, s in ((6000, TRAIN), (1000, VALID), (1000, TEST))
    )
    noise = torch.randn(6000, 8, generator=gen(12))
    model = nn.ModuleList([mlp(64, 96, 16), mlp(8, 96, 128)])

    def loss(b: Batch) -> Tensor:
        mean, spread = model[0](b[0]).chunk(2, dim=1)
        out, scale = model[1](mean + spread.exp() * b[1]).chunk(2, dim=1)
        miss = (0.5 * ((b[0] - out) / scale.exp()).pow(2) + scale + 0.919).sum(1)
        kl = (0.5 * (mean.pow(2) + (2 * spread).exp() - 1) - spread).sum(1)
        return (miss + kl).mean() / 64

    return Setup(model, loss, (x, noise), (valid, noise[:1000]), (test, noise[:1000]))


@job("self-supervision", "choose", steps=1000, batch=16)
def masked_table(seed: int) -> Setup:
    """Hidden cells of a table of 20 related columns from those that are left; one pass."""
    g = gen(13)
    latent = torch.randn(20000, 4, generator=g)
    mixed = torch.tanh(latent @ torch.randn(4, 20, generator=g)) + 0.3 * latent[:, :1]
    x = mixed + 0.2 * torch.randn(20000, 20, generator=g)
    shown = (torch.rand(20000, 20, generator=g) < 0.7).float()
    model = mlp(40, 64, 64, 20)

    def loss(b: Batch) -> Tensor:
        out = model(torch.cat([b[0] * b[1], b[1]], dim=1))
        return ((out - b[0]).pow(2) * (1 - b[1])).sum() / (1 - b[1]).sum()

    return Setup(model, loss, *cut((x, shown), valid=2000, test=2000))


@job("self-supervision", "report", steps=500, batch=64)
def contrastive(seed: int) -> Setup:
    """Which two noisy, flipped views are of one patch, among 64 (InfoNCE); one pass."""

    def views(n: int, strip: tuple[int, int]) -> Batch:
        x = patches(n, 8, seed=14, strip=strip)
        x = x - 0.8 * x.mean((1, 2), keepdim=True)
        one, two = torch.randn(2, n, 8, 8, generator=gen(14))
        return (x + 0.4 * one).flatten(1), (1.2 * x.flip(2) + 0.4 * two).flatten(1)

    model = mlp(64, 128, 32)

    def loss(b: Batch) -> Tensor:
        u, v = (F.normalize(model(x), dim=1) for x in b)
        logits = torch.einsum(
            "...id,...jd->...ij", u.unflatten(0, (-1, 64)), v.unflatten(0, (-1, 64))
        )
        goal = torch.arange(64).expand(len(logits), -1)
        return F.cross_entropy(logits.flatten(0, 1) / 0.1, goal.flatten())

    return Setup(model, loss, views(32000, TRAIN), views(1024, VALID), views(1024, TEST))


@job("language", "choose", steps=300, batch=12)
def gru(seed: int) -> Setup:
    """Next characters of Python's help by a GRU; a third of a pass."""
    rows = windows(characters("help", 64), 25, valid=100, test=200)
    table, core, head = nn.Embedding(64, 24), nn.GRU(24, 48, batch_first=True), nn.Linear(48, 64)
    model = nn.ModuleList([table, core, head])

    def loss(b: Batch) -> Tensor:
        out, _ = core(table(b[0][:, :-1]))
        return F.cross_entropy(head(out).flatten(0, 1), b[0][:, 1:].flatten())

    train, valid, test = ((r,) for r in rows)
    return Setup(model, loss, train, valid, test)


@job("language", "report", steps=300, batch=20)
def masked_language(seed: int) -> Setup:
    """Hidden characters of Python source by a transformer of 167,000 parameters; under one pass."""
    rows = windows(characters("source", 64), 16, valid=100, test=200)
    g = gen(15)
    train, valid, test = ((r, torch.rand(r.shape, generator=g) < 0.25) for r in rows)
    block = nn.TransformerEncoderLayer(80, 4, 320, dropout=0.0, batch_first=True)
    model = nn.ModuleDict(
        {
            "symbols": nn.Embedding(65, 80),
            "places": nn.Embedding(16, 80),
            "core": nn.TransformerEncoder(block, 2, enable_nested_tensor=False),
            "head": nn.Linear(80, 64),
        }
    )

    def loss(b: Batch) -> Tensor:
        seen = torch.where(b[1], 64, b[0])
        out = model["core"](model["symbols"](seen) + model["places"].weight)
        return F.cross_entropy(model["head"](out)[b[1]], b[0][b[1]])

    return Setup(model, loss, train, valid, test)


@job("sequences", "choose", steps=300, batch=20)
def pixels(seed: int) -> Setup:
    """Digits read two pixels at a time, 32 times, by a GRU."""
    x, y = bundled("digits")
    core, head = nn.GRU(2, 24, batch_first=True), nn.Linear(24, 10)
    model = nn.ModuleList([core, head])

    def loss(b: Batch) -> Tensor:
        return F.cross_entropy(head(core(b[0])[0][:, -1]), b[1])

    return Setup(model, loss, *cut((x.view(-1, 32, 2), y), valid=297, test=300))


@job("sequences", "report", steps=500, batch=16)
def forecast(seed: int) -> Setup:
    """Three quantiles of seasonal series, four steps ahead, by a plain recurrent net; one pass."""
    g = gen(17)
    n = 9500
    t = torch.arange(36.0)
    period = 4 + 20 * torch.rand(n, 2, 1, generator=g)
    phase, size = torch.rand(2, n, 2, 1, generator=g)
    waves = (size * torch.sin(2 * torch.pi * (t / period + phase))).sum(1)
    shocks = 0.1 * torch.randn(n, 36, generator=g)
    x = (
        waves
        + shocks.cumsum(1) * torch.rand(n, 1, generator=g)
        + 0.1 * torch.randn(n, 36, generator=g)
    )
    core, head = nn.RNN(1, 32, batch_first=True), nn.Linear(32, 3)
    model, share = nn.ModuleList([core, head]), torch.tensor([0.1, 0.5, 0.9])

    def loss(b: Batch) -> Tensor:
        miss = b[1][:, None] - head(core(b[0])[0][:, -1])
        return torch.maximum(share * miss, (share - 1) * miss).mean()

    return Setup(model, loss, *cut((x[:, :32, None], x[:, 35]), valid=500, test=1000))


@job("photographs", "choose", steps=800, batch=5)
def denoiser(seed: int) -> Setup:
    """Noise taken off photographs' patches by a residual convnet, one pass."""
    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(16, 1, 3, padding=1))

    def rows(n: int, strip: tuple[int, int]) -> Batch:
        clean = patches(n, 12, seed=18, strip=strip)[:, None]
        return clean + 0.5 * torch.randn(clean.shape, generator=gen(18)), clean

    return Setup(
        model,
        lambda b: (b[0] + model(b[0]) - b[1]).pow(2).mean(),
        rows(4000, TRAIN),
        rows(500, VALID),
        rows(1000, TEST),
    )


@job("photographs", "report", steps=800, batch=256, floor=-1e-3)
def coordinates(seed: int) -> Setup:
    """A photograph as a function of coordinates (Fourier features); pixels are held out."""
    grey = F.avg_pool2d(photo("flower.jpg")[None], 6)[0]
    place = torch.stack(
        torch.meshgrid(*(torch.linspace(-1, 1, n) for n in grey.shape), indexing="ij"), dim=-1
    ).view(-1, 2)
    g = gen(19)
    waves = place @ (6 * torch.randn(2, 32, generator=g))
    x = torch.cat([waves.sin(), waves.cos()], dim=1)
    mixed = torch.randperm(len(x), generator=g)
    model = mlp(64, 64, 64, 1)
    return Setup(
        model,
        lambda b: (model(b[0]).squeeze(1) - b[1]).pow(2).mean(),
        *cut((x[mixed], grey.flatten()[mixed]), valid=1500, test=1500),
    )
