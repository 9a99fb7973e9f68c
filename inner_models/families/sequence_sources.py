"""Generated sequences that ask a net to remember, each with its least possible loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pacesetter.inner_models.losses import with_label_noise
from pacesetter.inner_models.task import Batch


@dataclass(frozen=True, kw_only=True)
class Adding:
    """Rows of random numbers, two of them marked: what is their sum?

    Attributes:
        length: steps of a row; one mark lies in the first half and one in the second.
        noise: standard deviation of what is added to the sum, whose own is 1.
    """

    length: int
    noise: float

    def rows(self, count: int, generator: torch.Generator) -> Batch:
        """(count, length, 2), value and mark, and (count, 1), the noisy sum."""
        values = torch.rand(count, self.length, generator=generator).sub(0.5).mul(math.sqrt(12))
        half = self.length // 2
        places = torch.stack(
            (
                torch.randint(half, (count,), generator=generator),
                torch.randint(half, self.length, (count,), generator=generator),
            ),
            dim=1,
        )
        marks = torch.zeros_like(values).scatter_(1, places, 1.0)
        noise = self.noise * torch.randn(count, 1, generator=generator)
        total = (values * marks).sum(1, keepdim=True) / math.sqrt(2)
        return torch.stack((values, marks), dim=2), total + noise

    @property
    def optimum(self) -> float:
        """Least mean squared error: the variance of the noise."""
        return self.noise**2


@dataclass(frozen=True, kw_only=True)
class Copying:
    """Some symbols, a wait, a cue: what were the symbols?

    Attributes:
        length: steps of a row; the symbols are asked for at the last `items`, from the cue on.
        symbols: that there are; the next two tokens are the blank and the cue.
        items: symbols of a row.
        noise: share of the symbols asked for that are replaced by random ones.
    """

    length: int
    symbols: int
    items: int
    noise: float

    def rows(self, count: int, generator: torch.Generator) -> Batch:
        """Tokens (count, length) and symbols (count, items), both int64."""
        symbols = torch.randint(self.symbols, (count, self.items), generator=generator)
        tokens = torch.full((count, self.length), self.symbols)
        tokens[:, : self.items] = symbols
        tokens[:, -self.items] = self.symbols + 1
        return tokens, with_label_noise(symbols, self.symbols, self.noise, generator)

    @property
    def optimum(self) -> float:
        """Least cross-entropy, in nats."""
        return label_noise_entropy(self.symbols, self.noise)


@dataclass(frozen=True, kw_only=True)
class Recall:
    """Pairs of a key and a value, a wait, and a key: what was its value?

    Attributes:
        length: steps of a row; the last is the key in question.
        symbols: keys that there are, and as many values; tokens are keys, values and the blank.
        pairs: in a row, no two with the same key.
        noise: share of the values asked for that are replaced by random ones.
    """

    length: int
    symbols: int
    pairs: int
    noise: float

    def rows(self, count: int, generator: torch.Generator) -> Batch:
        """Tokens (count, length) and values (count,), both int64."""
        order = torch.rand(count, self.symbols, generator=generator).argsort(1)
        keys = order[:, : self.pairs]
        values = torch.randint(self.symbols, keys.shape, generator=generator)
        asked = torch.randint(self.pairs, (count, 1), generator=generator)
        tokens = torch.full((count, self.length), 2 * self.symbols)
        tokens[:, 0 : 2 * self.pairs : 2] = keys
        tokens[:, 1 : 2 * self.pairs : 2] = values + self.symbols
        tokens[:, -1:] = keys.gather(1, asked)
        answers = values.gather(1, asked)[:, 0]
        return tokens, with_label_noise(answers, self.symbols, self.noise, generator)

    @property
    def optimum(self) -> float:
        """Least cross-entropy, in nats."""
        return label_noise_entropy(self.symbols, self.noise)


@dataclass(frozen=True, kw_only=True)
class Series:
    """Sums of sinusoids with random phases and heights, in noise: what comes next?

    Every sinusoid is a Gaussian process, so that the best prediction is known.

    Attributes:
        length: steps of a row; at each of them the next value is predicted.
        waves: (number of sinusoids, 2), period in steps and variance; the variances sum to 1.
        noise: standard deviation of the noise.
    """

    length: int
    waves: Tensor
    noise: float

    def rows(self, count: int, generator: torch.Generator) -> Batch:
        """Values (count, length, 1) and those one step later (count, length, 1)."""
        period, variance = self.waves.T
        angle = 2 * math.pi * torch.arange(self.length + 1) / period[:, None]
        basis = torch.cat((angle.cos(), angle.sin())) * variance.sqrt().repeat(2)[:, None]
        values = torch.randn(count, len(basis), generator=generator) @ basis
        values += self.noise * torch.randn(values.shape, generator=generator)
        return values[:, :-1, None], values[:, 1:, None]

    @property
    def optimum(self) -> float:
        """Least mean squared error: the mean variance of a value given all before it."""
        period, variance = self.waves.double().T
        steps = torch.arange(self.length + 1, dtype=torch.float64)
        lags = (steps[:, None] - steps) / period[:, None, None]
        covariance = (variance[:, None, None] * (2 * math.pi * lags).cos()).sum(0)
        covariance += self.noise**2 * torch.eye(len(steps), dtype=torch.float64)
        return float(torch.linalg.cholesky(covariance).diagonal()[1:].square().mean())


def label_noise_entropy(symbols: int, noise: float) -> float:
    """Entropy, in nats, of a known symbol of which a share is replaced by random ones.

    >>> round(label_noise_entropy(2, 1.0), 4)
    0.6931
    """
    other = noise / symbols
    right = 1 - (symbols - 1) * other
    wrong = (symbols - 1) * other * math.log(other) if other else 0.0
    return -right * math.log(right) - wrong
