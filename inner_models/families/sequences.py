"""Recurrent nets on generated sequences, in which something has to be remembered.

Their losses stay flat for long and then fall at once, when the net has found what to keep: a curve
that no MLP on independent rows shows. Each source of sequences knows its least possible loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pacesetter.inner_models.draw import Draw, IntRange, Range
from pacesetter.inner_models.families.base import GeneratedFamily, JobRanges, Problem, Shape
from pacesetter.inner_models.losses import cross_entropy, mean_squared_error, with_label_noise
from pacesetter.inner_models.networks.recurrent import RecurrentNet, RecurrentShape
from pacesetter.inner_models.task import Batch

Kind = Literal["adding", "copying", "recall", "series"]
_KINDS: tuple[Kind, ...] = ("adding", "copying", "recall", "series")
_REGRESSION: tuple[Kind, ...] = ("adding", "series")


@dataclass(frozen=True, kw_only=True)
class Adding:
    """Rows of random numbers, two of them marked: what is their sum?"""

    length: int  # steps of a row; one mark lies in the first half and one in the second
    noise: float  # standard deviation of what is added to the sum, whose own is 1

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
    """Some symbols, a wait, a cue: what were the symbols?"""

    length: int  # steps of a row; the symbols are asked for at the last `items`, from the cue on
    symbols: int  # that there are; the next two tokens are the blank and the cue
    items: int  # symbols of a row
    noise: float  # share of the symbols asked for that are replaced by random ones

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
    """Pairs of a key and a value, a wait, and a key: what was its value?"""

    length: int  # steps of a row; the last is the key in question
    symbols: int  # keys that there are, and as many values; tokens are keys, values and the blank
    pairs: int  # in a row, no two with the same key
    noise: float  # share of the values asked for that are replaced by random ones

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
    """

    length: int  # steps of a row; at each of them the next value is predicted
    waves: Tensor  # (number of sinusoids, 2), period in steps and variance; the variances sum to 1
    noise: float  # standard deviation of the noise

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


@dataclass(frozen=True, kw_only=True)
class SequenceShape:
    """A recurrent net and the kind of sequence that it learns."""

    kind: Kind  # ``"adding"``, ``"copying"``, ``"recall"`` or ``"series"``
    net: RecurrentShape  # sizes of the net
    symbols: int = 0  # to copy, or keys and values to recall
    items: int = 0  # symbols to copy, or pairs to recall one from


@dataclass(frozen=True, kw_only=True)
class SequenceRanges(JobRanges):
    """Ranges of the sequence family, beside those of every job (`JobRanges`)."""

    hidden: IntRange = (8, 32)  # width of the state
    # steps of a row; it grows where what is to be remembered would not fit
    length: IntRange = (6, 24)
    symbols: IntRange = (2, 8)  # to copy, or keys and values to recall
    items: IntRange = (1, 4)  # symbols to copy, or pairs to recall one from
    waves: IntRange = (1, 3)  # sinusoids in a series
    period: Range = (2.5, 24.0)  # of a sinusoid, in steps
    # of sums and series, over the spread of what is predicted without it
    noise: Range = (0.05, 0.5)
    # share of the symbols asked for that are replaced by random ones
    symbol_noise: Range = (0.01, 0.2)
    lstm_share: float = 0.4  # share of LSTMs
    batch_size: IntRange = (8, 256)
    adam_lr: Range = (0.03, 0.1)
    sgd_lr: Range = (0.28, 1.0)
    rmsprop_lr: Range = (6e-4, 1.8e-3)
    work: float = 8e8

    LEAST: ClassVar[dict[str, int]] = {
        **JobRanges.LEAST,
        **{"hidden": 1, "length": 2, "symbols": 2, "items": 1, "waves": 1},
    }


@dataclass(frozen=True)
class SequenceRNN(GeneratedFamily[SequenceShape]):
    """GRUs and LSTMs on sequences that have to be remembered.

    Adding: the sum of the two numbers of a row that are marked (Hochreiter & Schmidhuber 1997).
    Copying: the first symbols once more after a wait (Arjovsky et al. 2016). Recall: the value that
    stood after a key (Ba et al. 2016). Series: the next value of a sum of sinusoids in noise.
    """

    ranges: SequenceRanges = field(default_factory=SequenceRanges)
    name: str = "sequence-rnn"

    def draw_model(self, draw: Draw) -> SequenceShape:
        r = self.ranges
        kind = draw.choice(_KINDS)
        symbols, items = draw.log_integer(*r.symbols), draw.integer(*r.items)
        length = draw.log_integer(*r.length)
        inputs, outputs, vocabulary, last = 1, 1, 0, length
        if kind == "adding":
            inputs, last = 2, 0
        elif kind == "copying":
            length = max(length, 2 * items)
            inputs, outputs, vocabulary, last = symbols + 2, symbols, symbols + 2, items
        elif kind == "recall":
            items = min(items, symbols)
            length = max(length, 2 * items + 1)
            inputs, outputs, vocabulary, last = symbols, symbols, 2 * symbols + 1, 0
        net = RecurrentShape(
            cell="lstm" if draw.chance(r.lstm_share) else "gru",
            inputs=inputs,
            hidden=draw.log_integer(*r.hidden),
            outputs=outputs,
            length=length,
            vocabulary=vocabulary,
            last=last,
        )
        return SequenceShape(kind=kind, net=net, symbols=symbols, items=items)

    def cost(self, model: SequenceShape) -> float:
        return model.net.cost

    def draw_problem(self, shape: Shape[SequenceShape], draw: Draw) -> Problem:
        model = shape.model
        source = self.draw_source(model, draw)
        return Problem(
            build_model=partial(RecurrentNet, model.net),
            loss=mean_squared_error if model.kind in _REGRESSION else cross_entropy,
            rows=source.rows,
            optimum=source.optimum,
        )

    def draw_source(self, model: SequenceShape, draw: Draw) -> Adding | Copying | Recall | Series:
        r, length = self.ranges, model.net.length
        noise = draw.log_uniform(*(r.noise if model.kind in _REGRESSION else r.symbol_noise))
        if model.kind == "adding":
            return Adding(length=length, noise=noise)
        if model.kind == "copying":
            return Copying(length=length, symbols=model.symbols, items=model.items, noise=noise)
        if model.kind == "recall":
            return Recall(length=length, symbols=model.symbols, pairs=model.items, noise=noise)
        count = draw.integer(*r.waves)
        variances = torch.rand(count, generator=draw.generator) + 0.1
        periods = [draw.log_uniform(*r.period) for _ in range(count)]
        waves = torch.stack((torch.tensor(periods), variances / variances.sum()), dim=1)
        return Series(length=length, waves=waves, noise=noise)
