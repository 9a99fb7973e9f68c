"""Recurrent nets on generated sequences: what stands out is to be kept until it is asked for.

Their losses stay flat for long and then fall at once, when the net has found what to keep: a curve
that no MLP on independent rows shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from pacesetter.inner_models.draw import Draw
from pacesetter.inner_models.families.base import GeneratedFamily, JobRanges, Problem, Shape
from pacesetter.inner_models.families.sequence_sources import Adding, Copying, Recall, Series
from pacesetter.inner_models.losses import cross_entropy, mean_squared_error

Cell = Literal["gru", "lstm"]
CELLS: dict[Cell, type[nn.GRU] | type[nn.LSTM]] = {"gru": nn.GRU, "lstm": nn.LSTM}
_GATES: dict[Cell, int] = {"gru": 3, "lstm": 4}
Kind = Literal["adding", "copying", "recall", "series"]
_KINDS: tuple[Kind, ...] = ("adding", "copying", "recall", "series")
_REGRESSION: tuple[Kind, ...] = ("adding", "series")


@dataclass(frozen=True, kw_only=True)
class RecurrentShape:
    """Sizes and code paths of a recurrent net with a linear readout.

    Attributes:
        cell: GRU (Cho et al. 2014) or LSTM (Hochreiter & Schmidhuber 1997).
        inputs: numbers per step, or, for tokens, width of their embedding.
        vocabulary: symbols of the tokens; 0: the inputs are numbers.
        hidden: width of the state.
        outputs: of the readout.
        length: steps of a row.
        last: the readout sees so many of the last steps; 0: the last one only, and there is no
            dimension of steps in what comes out.
    """

    cell: Cell
    inputs: int
    hidden: int
    outputs: int
    length: int
    vocabulary: int = 0
    last: int = 0

    @property
    def cost(self) -> float:
        """Multiply-adds of the forward pass of one row."""
        step = _GATES[self.cell] * self.hidden * (self.hidden + self.inputs)
        return float(self.length * step + max(self.last, 1) * self.hidden * self.outputs)


class RecurrentNet(nn.Module):
    """A GRU or LSTM with a linear readout.

    Args:
        shape: sizes.
    """

    def __init__(self, shape: RecurrentShape) -> None:
        super().__init__()
        self.embed: nn.Module = nn.Identity()
        if shape.vocabulary:
            self.embed = nn.Embedding(shape.vocabulary, shape.inputs)
        self.core = CELLS[shape.cell](shape.inputs, shape.hidden, batch_first=True)
        self.readout = nn.Linear(shape.hidden, shape.outputs)
        self.last = shape.last

    def forward(self, x: Tensor) -> Tensor:
        """Numbers (rows, length, inputs) or tokens (rows, length) -> (rows, last, outputs).

        With ``last = 0`` the result is (rows, outputs).
        """
        states = self.core(self.embed(x))[0]
        out: Tensor = self.readout(states[:, -self.last :] if self.last else states[:, -1])
        return out


def build_recurrent(shape: RecurrentShape) -> RecurrentNet:
    """A recurrent net with torch's default initialisation."""
    return RecurrentNet(shape)


@dataclass(frozen=True, kw_only=True)
class SequenceShape:
    """A recurrent net and the kind of sequence that it learns.

    Attributes:
        kind: ``"adding"``, ``"copying"``, ``"recall"`` or ``"series"``.
        net: sizes of the net.
        symbols: to copy, or keys and values to recall.
        items: symbols to copy, or pairs to recall one from.
    """

    kind: Kind
    net: RecurrentShape
    symbols: int = 0
    items: int = 0


@dataclass(frozen=True, kw_only=True)
class SequenceRanges(JobRanges):
    """Ranges of the sequence family, beside those of every job (`JobRanges`).

    Attributes:
        hidden: width of the state.
        length: steps of a row; it grows where what is to be remembered would not fit.
        symbols: to copy, or keys and values to recall.
        items: symbols to copy, or pairs to recall one from.
        waves: sinusoids in a series.
        period: of a sinusoid, in steps.
        noise: of sums and series, over the spread of what is predicted without it.
        symbol_noise: share of the symbols asked for that are replaced by random ones.
        lstm_share: share of LSTMs.
    """

    hidden: tuple[int, int] = (8, 32)
    length: tuple[int, int] = (6, 24)
    symbols: tuple[int, int] = (2, 8)
    items: tuple[int, int] = (1, 4)
    waves: tuple[int, int] = (1, 3)
    period: tuple[float, float] = (2.5, 24.0)
    noise: tuple[float, float] = (0.05, 0.5)
    symbol_noise: tuple[float, float] = (0.01, 0.2)
    lstm_share: float = 0.4
    batch_size: tuple[int, int] = (8, 256)
    adam_lr: tuple[float, float] = (0.03, 0.1)
    sgd_lr: tuple[float, float] = (0.28, 1.0)
    rmsprop_lr: tuple[float, float] = (6e-4, 1.8e-3)
    work: float = 8e8

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, size in {"hidden": 1, "length": 2, "symbols": 2, "items": 1, "waves": 1}.items():
            if getattr(self, name)[0] < size:
                raise ValueError(
                    f"{name} must start at {size} or more, but got {getattr(self, name)}"
                )


@dataclass(frozen=True)
class SequenceRNN(GeneratedFamily[SequenceShape]):
    """GRUs and LSTMs on sequences that have to be remembered.

    Adding: the sum of the two numbers of a row that are marked (Hochreiter & Schmidhuber 1997).
    Copying: the first symbols once more after a wait (Arjovsky et al. 2016). Recall: the value that
    stood after a key (Ba et al. 2016). Series: the next value of a sum of sinusoids in noise.

    | drawn | range |
    |---|---|
    | kind | adding, copying, recall, series |
    | cell, width of its state | GRU, 40 % LSTM; 8 to 32 |
    | length | 6 to 24 steps |
    | copying: symbols, how many of them | 2 to 8, 1 to 4 |
    | recall: keys and values, pairs | 2 to 8, 1 to 4 |
    | series: sinusoids, period | 1 to 3, 2.5 to 24 steps |
    | noise of sums and series, of symbols | 0.05 to 0.5, 0.01 to 0.2 |
    | batch size | 8 to 256 rows |
    """

    ranges: SequenceRanges = field(default_factory=SequenceRanges)
    name: str = "sequence-rnn"

    def draw_model(self, draw: Draw) -> SequenceShape:
        """See `GeneratedFamily.draw_model`."""
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
        """See `GeneratedFamily.cost`."""
        return model.net.cost

    def draw_problem(self, shape: Shape[SequenceShape], draw: Draw) -> Problem:
        """See `GeneratedFamily.draw_problem`."""
        model = shape.model
        source = self.draw_source(model, draw)
        return Problem(
            build_model=partial(build_recurrent, model.net),
            loss=mean_squared_error if model.kind in _REGRESSION else cross_entropy,
            rows=source.rows,
            optimum=source.optimum,
        )

    def draw_source(self, model: SequenceShape, draw: Draw) -> Adding | Copying | Recall | Series:
        """Draws where the rows of one task come from."""
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
