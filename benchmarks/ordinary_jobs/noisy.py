"""Jobs whose gradients are noise for the most part, or whose targets move."""

from __future__ import annotations

import copy
import re
from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ordinary_jobs.base import Batch, Setup, bundled, cut, gen, job, mlp


@job("noisy regression", "choose", steps=1200, batch=16)
def scaled(seed: int) -> Setup:
    """Linear regression, 120 features whose scales fall over three decades, noise; one pass."""
    g = gen(0)
    scale = torch.logspace(0, -3, 120)
    w = torch.randn(120, generator=g) / scale.sqrt()
    x = torch.randn(24000, 120, generator=g) * scale
    y = x @ w
    y = y + 0.3 * y.std() * torch.randn(24000, generator=g)
    model = nn.Linear(120, 1)
    nn.init.zeros_(model.weight)
    return Setup(
        model,
        lambda b: (model(b[0]).squeeze(1) - b[1]).pow(2).mean(),
        *cut((x, y), valid=2400, test=2400),
        order=torch.arange(19200).view(1200, 16),
    )


@job("noisy regression", "report", steps=3000, batch=1)
def stream(seed: int) -> Setup:
    """Friedman's function with heavy-tailed noise, one observation at a time, each seen once."""
    g = gen(1)
    x = torch.rand(6000, 10, generator=g)
    y = 10 * torch.sin(torch.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2
    y = (y + 10 * x[:, 3] + 5 * x[:, 4] - 14.4) / 4.9
    t = torch.randn(6000, generator=g) / torch.rand(6000, generator=g).sqrt()
    model = mlp(10, 32, 32, 1, act=nn.Tanh)
    return Setup(
        model,
        lambda b: F.smooth_l1_loss(model(b[0]).squeeze(1), b[1]),
        *cut((x, y + 0.4 * t), valid=1500, test=1500),
    )


@job("sparse features", "choose", steps=1000, batch=32)
def bag(seed: int) -> Setup:
    """Bags of 12 words out of 4,000 with Zipf's frequencies, ten topics; logistic regression."""
    g = gen(1)
    p = 1 / torch.arange(1, 4001.0)
    topic = torch.randint(10, (12000,), generator=g)
    lift = torch.where(torch.rand(10, 4000, generator=g) < 0.02, 12.0, 1.0)
    x = torch.multinomial(p * lift[topic], 12, replacement=True, generator=g)
    model = nn.EmbeddingBag(4000, 10, mode="mean")
    nn.init.zeros_(model.weight)
    return Setup(
        model,
        lambda b: F.cross_entropy(model(b[0]), b[1]),
        *cut((x, topic), valid=1200, test=1200),
        order=torch.stack([torch.randint(9600, (32,), generator=gen(i)) for i in range(1000)]),
    )


@job("sparse features", "report", steps=1200, batch=64)
def skip_gram(seed: int) -> Setup:
    """Word vectors of Python's help by negative sampling, 2,000 words; less than one pass."""
    from pydoc_data.topics import topics

    text = re.findall(r"[a-z_]+", "\n".join(topics[name] for name in sorted(topics)).lower())
    counts = Counter(text).most_common(2000)
    number = {word: i for i, (word, _) in enumerate(counts)}
    words = torch.tensor([number[word] for word in text if word in number])
    train, held = words.split([len(words) * 9 // 10, len(words) - len(words) * 9 // 10])
    frequent = torch.tensor([float(n) for _, n in counts]) ** 0.75
    g = gen(2)

    def pairs(of: Tensor, n: int) -> Batch:
        at, by = torch.randint(2, len(of) - 2, (n,), generator=g), torch.tensor([-2, -1, 1, 2])
        near = of[at + by[torch.randint(4, (n,), generator=g)]]
        other = torch.multinomial(frequent, 5 * n, replacement=True, generator=g).view(n, 5)
        return of[at], torch.cat([near[:, None], other], dim=1)

    model = nn.ModuleList([nn.Embedding(2000, 24), nn.Embedding(2000, 24)])
    for table in model:
        nn.init.normal_(table.weight, std=0.1)
    sign = torch.tensor([1.0, -1, -1, -1, -1, -1])

    def loss(b: Batch) -> Tensor:
        dots = (model[0](b[0])[:, None] * model[1](b[1])).sum(-1)
        return -F.logsigmoid(sign * dots).sum(1).mean()

    return Setup(model, loss, pairs(train, 76800), pairs(held, 2000), pairs(held, 2000))


@job("tiny batches", "choose", steps=1800, batch=3)
def spot(seed: int) -> Setup:
    """Where a bright spot lies on a 16 x 16 picture: a small convnet, fresh pictures."""
    torch.manual_seed(2 + seed)
    layers = [nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()]
    head = [nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 2)]
    model = nn.Sequential(*layers, *head)
    grid = torch.stack(torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij"))

    def draw(n: int, seed: int) -> Batch:
        g = gen(seed)
        at = torch.rand(n, 2, generator=g) * 15
        bright = torch.exp(-((grid - at[:, :, None, None]) ** 2).sum(1) / 4)
        return bright[:, None] + 0.3 * torch.randn(n, 1, 16, 16, generator=g), at / 7.5 - 1

    fresh = [draw(3, 10 + i) for i in range(1800)]
    train = torch.cat([x for x, _ in fresh]), torch.cat([y for _, y in fresh])
    return Setup(
        model,
        lambda b: (model(b[0]) - b[1]).pow(2).mean(),
        train,
        draw(1500, 10**6 + 10),
        draw(1500, 10**6 + 11),
        order=torch.arange(5400).view(1800, 3),
    )


@job("tiny batches", "report", steps=600, batch=2)
def digit_pairs(seed: int) -> Setup:
    """Digits by a small convnet, batches of two, one pass."""
    x, y = bundled("digits")
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()]
    model = nn.Sequential(nn.Unflatten(1, (1, 8)), *layers, nn.Flatten(), nn.Linear(256, 10))
    return Setup(
        model,
        lambda b: F.cross_entropy(model(b[0]), b[1]),
        *cut((x.view(-1, 8, 8), y), valid=297, test=300),
    )


@job("moving targets", "choose", steps=1500, batch=32)
def bootstrap(seed: int) -> Setup:
    """Values of a random walk on 30 states, a target network that follows every 50 updates."""
    torch.manual_seed(3 + seed)
    model, target = mlp(30, 64, 1, act=nn.Tanh), mlp(30, 64, 1, act=nn.Tanh)
    eye = torch.eye(30)
    walk = 0.5 * torch.roll(eye, 1, 0) + 0.5 * torch.roll(eye, -1, 0)
    reward = torch.sin(torch.arange(30.0) / 3) * 2
    value = torch.linalg.solve(eye - 0.95 * walk, reward)

    def before(i: int) -> None:
        if i % 50 == 0:
            target.load_state_dict(model.state_dict())

    def loss(b: Batch) -> Tensor:
        with torch.no_grad():
            goal = reward[b[0]] + 0.95 * target(eye[b[1]]).squeeze(1)
        return F.smooth_l1_loss(model(eye[b[0]]).squeeze(1), goal)

    moves = []
    for i in range(1500):
        g = gen(i)
        s = torch.randint(30, (32,), generator=g)
        moves.append((s, (s + torch.randint(2, (32,), generator=g) * 2 - 1) % 30))
    train = torch.cat([s for s, _ in moves]), torch.cat([t for _, t in moves])
    order = torch.arange(48000).view(1500, 32)

    def held(b: Batch) -> Tensor:
        return (model(b[0]).squeeze(1) - b[1]).pow(2).mean()

    return Setup(model, loss, train, (eye, value), (eye, value), order, before, held)


@job("moving targets", "report", steps=1200, batch=32, floor=-1e-3)
def q_learning(seed: int) -> Setup:
    """Off-policy Q-learning on a slippery torus of 8 x 8, the target network a running mean.

    Held-out: distance from the true values on one half of the states for validation, on the other
    for the test; a constant predictor has 1.
    """
    g = gen(4)
    at = torch.stack(torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij"), -1).view(
        -1, 2
    )
    steps = torch.tensor([[0, 1], [0, -1], [1, 0], [-1, 0]])
    after = ((at[:, None] + steps) % 8) @ torch.tensor([8, 1])
    angle = at * torch.pi / 4
    x = torch.cat([angle.sin(), angle.cos(), (2 * angle).sin(), (2 * angle).cos()], dim=1)
    reward = torch.randn(64, generator=g) + 2 * torch.sin(angle[:, 0] + angle[:, 1])
    moves = 0.85 * torch.eye(4) + 0.05 * (1 - torch.eye(4))
    true = torch.zeros(64, 4)
    for _ in range(200):
        true = reward[:, None] + 0.9 * true.max(1).values[after] @ moves
    truth = true / true.std()

    model = mlp(8, 64, 64, 4)
    target = copy.deepcopy(model)

    def before(i: int) -> None:
        for old, new in zip(target.parameters(), model.parameters(), strict=True):
            old.data.lerp_(new.data, 0.05)

    def loss(b: Batch) -> Tensor:
        s, a, t = b
        with torch.no_grad():
            best = target(x[t]).max(1).values
            goal = reward[s] / true.std() + 0.9 * best
        return (model(x[s]).gather(1, a[:, None]).squeeze(1) - goal).pow(2).mean()

    s, a = (torch.randint(n, (38400,), generator=g) for n in (64, 4))
    slip = torch.rand(38400, generator=g) < 0.2
    done = torch.where(slip, torch.randint(4, (38400,), generator=g), a)
    half = torch.randperm(64, generator=g)
    return Setup(
        model,
        loss,
        (s, a, after[s, done]),
        (x[half[:32]], truth[half[:32]]),
        (x[half[32:]], truth[half[32:]]),
        before=before,
        held=lambda b: (model(b[0]) - b[1]).pow(2).mean(),
    )
