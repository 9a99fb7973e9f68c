"""Jobs on labelled rows: pictures, tables, preferences, graphs; most see their rows many times."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ordinary_jobs.base import Batch, Setup, bundled, cut, gen, job, mlp


@job("pictures", "choose", steps=150, batch=32)
def few_epochs(seed: int) -> Setup:
    """Digits by a convnet with batch normalisation, four epochs."""
    x, y = bundled("digits")
    block = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)]
    block += [nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(nn.Unflatten(1, (1, 8)), *block, nn.Flatten(), nn.Linear(128, 10))
    return Setup(
        model,
        lambda b: F.cross_entropy(model(b[0]), b[1]),
        *cut((x.view(-1, 8, 8), y), valid=297, test=300),
    )


@job("pictures", "report", steps=400, batch=316)
def long_tail(seed: int) -> Setup:
    """Digits of which each class is rarer than the one before; full batch, balanced held-out."""
    x, y = bundled("digits")
    train, valid, test = cut((x, y), valid=297, test=300)
    most = [int(100 * 0.7**c) + 2 for c in range(10)]
    kept = torch.cat([(train[1] == c).nonzero().squeeze(1)[:n] for c, n in enumerate(most)])
    rows = kept[torch.arange(316) % len(kept)]
    model = mlp(64, 128, 10)
    return Setup(
        model,
        lambda b: F.cross_entropy(model(b[0]), b[1]),
        (train[0][rows], train[1][rows]),
        valid,
        test,
    )


@job("labels noisy or few", "choose", steps=1000, batch=48)
def label_noise(seed: int) -> Setup:
    """Digits of which 40 % of the labels are random, 40 epochs; the test rows are clean."""
    x, y = bundled("digits")
    g = gen(5)
    wrong = torch.rand(len(y), generator=g) < 0.4
    wrong[-300:] = False
    noisy = torch.where(wrong, torch.randint(10, y.shape, generator=g), y)
    model = mlp(64, 256, 10)
    return Setup(
        model,
        lambda b: F.cross_entropy(model(b[0]), b[1]),
        *cut((x, noisy), valid=297, test=300),
    )


@cache
def _backbone() -> dict[str, Tensor]:
    """Weights of a perceptron that knows the digits 0 to 4; the same ones at each call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x, y = bundled("digits")
        model = mlp(64, 96, 96, 5)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(100):
            optimizer.zero_grad()
            F.cross_entropy(model(x[y < 5]), y[y < 5]).backward()
            optimizer.step()
        return model.state_dict()


class _Adapted(nn.Module):
    """A frozen layer with a trainable change of rank four, which is zero at first."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Linear(layer.in_features, 4, bias=False)
        self.up = nn.Linear(4, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x))


@job("labels noisy or few", "report", steps=300, batch=10)
def adapters(seed: int) -> Setup:
    """A frozen net that knows half of the digits learns the others from 100, by adapters."""
    backbone = mlp(64, 96, 96, 5)
    backbone.load_state_dict(_backbone())
    adapted = [_Adapted(part) if isinstance(part, nn.Linear) else part for part in backbone[:4]]
    model = nn.Sequential(*adapted, nn.Linear(96, 5))
    x, y = bundled("digits")
    others = y >= 5
    rows = x[others][:700], y[others][:700] - 5
    return Setup(
        model, lambda b: F.cross_entropy(model(b[0]), b[1]), *cut(rows, valid=300, test=300)
    )


@job("tables", "choose", steps=300, batch=300)
def full_batch(seed: int) -> Setup:
    """Breast cancer, 30 features and 300 rows, by a perceptron; full batch."""
    x, y = bundled("breast_cancer")
    model = mlp(30, 32, 1)
    return Setup(
        model,
        lambda b: F.binary_cross_entropy_with_logits(model(b[0]).squeeze(1), b[1]),
        *cut((x, y.float()), valid=134, test=135),
    )


@job("tables", "report", steps=1200, batch=8)
def diabetes(seed: int) -> Setup:
    """Diabetes, 10 features and 242 rows, regression by a perceptron; 40 epochs."""
    x, y = bundled("diabetes")
    model = mlp(10, 64, 64, 1)
    target = ((y - y.mean()) / y.std()).float()
    return Setup(
        model,
        lambda b: (model(b[0]).squeeze(1) - b[1]).pow(2).mean(),
        *cut((x, target), valid=100, test=100),
    )


@job("ranking and survival", "choose", steps=1000, batch=16)
def ranking(seed: int) -> Setup:
    """Which of two items is preferred, 20 features each, one pass through noisy choices."""
    g = gen(6)
    a, b = torch.randn(2, 20000, 20, generator=g)
    w, v = torch.randn(2, 20, generator=g)

    def worth(x: Tensor) -> Tensor:
        return x @ w / 3 + torch.sin(x @ v / 2) + 0.5 * x[:, 0] * x[:, 1]

    chosen = torch.rand(20000, generator=g) < torch.sigmoid(2 * (worth(a) - worth(b)))
    pair = torch.stack([a, b], dim=1)
    pair = torch.where(chosen[:, None, None], pair, pair.flip(1))
    model = mlp(20, 48, 48, 1)

    def loss(b: Batch) -> Tensor:
        score = model(b[0]).squeeze(2)
        return F.softplus(score[:, 1] - score[:, 0]).mean()

    return Setup(model, loss, *cut((pair,), valid=2000, test=2000))


@job("ranking and survival", "report", steps=400, batch=400)
def survival(seed: int) -> Setup:
    """Cox's partial likelihood of 400 patients, 15 covariates, a third censored; full batch."""
    g = gen(7)
    x = torch.randn(1200, 15, generator=g)
    risk = 0.8 * x[:, 0] - 0.6 * x[:, 1] + 0.5 * x[:, 2] * x[:, 3]
    time, censored = -torch.rand(2, 1200, generator=g).log()
    time = time * torch.exp(-risk)
    event = (time < 1.5 * censored).float()
    model = mlp(15, 32, 32, 1)

    def loss(b: Batch) -> Tensor:
        x, time, event = b
        score = model(x).squeeze(1)
        at_risk = torch.where(time[None, :] >= time[:, None], score[None, :], -torch.inf)
        return ((at_risk.logsumexp(1) - score) * event).sum() / event.sum()

    columns = x, torch.minimum(time, 1.5 * censored), event
    return Setup(model, loss, *cut(columns, valid=400, test=400))


@job("deep or stiff", "choose", steps=400, batch=64)
def deep(seed: int) -> Setup:
    """Digits by a perceptron of 20 layers without normalisation, initialised as He et al. say."""
    x, y = bundled("digits")
    model = mlp(64, *[32] * 19, 10)
    for part in model:
        if isinstance(part, nn.Linear):
            nn.init.kaiming_normal_(part.weight)
            nn.init.zeros_(part.bias)
    return Setup(
        model,
        lambda b: F.cross_entropy(model(b[0]), b[1]),
        *cut((x, y), valid=297, test=300),
    )


@job("deep or stiff", "report", steps=800, batch=32, floor=-1e-3)
def physics(seed: int) -> Setup:
    """A net that is to solve -u'' + 20 u = f on [0, 1] by the residual at random points.

    Losses are those of the equation over the spread of f, and of the ends, at points held out.
    """
    g = gen(8)
    x = torch.rand(29600, 1, generator=g)
    k = torch.tensor([1.0, 3.0, 5.0]) * torch.pi
    source = ((k**2 + 20) * torch.tensor([1.0, 0.5, 0.2]) * torch.sin(k * x)).sum(1, keepdim=True)
    spread = source.std()
    model = mlp(1, 32, 32, 1, act=nn.Tanh)
    ends = torch.tensor([[0.0], [1.0]])

    def loss(b: Batch) -> Tensor:
        with torch.enable_grad():
            at = b[0].clone().requires_grad_()
            u = model(at)
            (slope,) = torch.autograd.grad(u.sum(), at, create_graph=True)
            (bend,) = torch.autograd.grad(slope.sum(), at, create_graph=True)
        return ((20 * u - bend - b[1]) / spread).pow(2).mean() + model(ends).pow(2).mean()

    return Setup(model, loss, *cut((x, source), valid=2000, test=2000))


@job("relations", "choose", steps=900, batch=64)
def ratings(seed: int) -> Setup:
    """Matrix factorisation of 1,500 users and 800 items with Zipf's frequencies; one pass."""
    g = gen(9)
    n = 62000
    user, item = (
        torch.multinomial(torch.arange(1.0, m + 1) ** -0.8, n, replacement=True, generator=g)
        for m in (1500, 800)
    )
    p, q = torch.randn(1500, 5, generator=g), torch.randn(800, 5, generator=g)
    own = 0.5 * (p[user, 0] + q[item, 0]) + 0.4 * (p * 1)[user].mul(q[item])[:, 1:].sum(1)
    y = own + 0.5 * torch.randn(n, generator=g)
    model = nn.ModuleList([nn.Embedding(1500, 13), nn.Embedding(800, 13)])
    for table in model:
        nn.init.normal_(table.weight, std=0.1)

    def loss(b: Batch) -> Tensor:
        u, v = model[0](b[0]), model[1](b[1])
        return (u[:, 0] + v[:, 0] + (u[:, 1:] * v[:, 1:]).sum(1) - b[2]).pow(2).mean()

    return Setup(model, loss, *cut((user, item, y), valid=2000, test=2400))


@job("relations", "report", steps=200, batch=90)
def graph(seed: int) -> Setup:
    """Classes of the nodes of a graph by two graph convolutions, 90 of 600 labelled; full batch."""
    g = gen(10)
    y = torch.randint(6, (600,), generator=g)
    near = torch.where(y[:, None] == y, 0.03, 0.006)
    edge = (torch.rand(600, 600, generator=g) < near).triu(1).float()
    link = edge + edge.T + torch.eye(600)
    degree = link.sum(1).rsqrt()
    link = degree[:, None] * link * degree
    x = torch.randn(600, 50, generator=g) + 0.5 * torch.randn(6, 50, generator=g)[y]
    model = nn.ModuleList([nn.Linear(50, 32), nn.Linear(32, 6)])

    def loss(b: Batch) -> Tensor:
        logits = link @ model[1](torch.relu(link @ model[0](x)))
        return F.cross_entropy(logits[b[0]], y[b[0]])

    return Setup(model, loss, *cut((torch.randperm(600, generator=g),), valid=200, test=310))
