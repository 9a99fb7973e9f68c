"""Recurrent nets, as a user would write them: a GRU or an LSTM with a linear readout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

Cell = Literal["gru", "lstm"]
CELLS: dict[Cell, type[nn.GRU] | type[nn.LSTM]] = {"gru": nn.GRU, "lstm": nn.LSTM}
_GATES: dict[Cell, int] = {"gru": 3, "lstm": 4}


@dataclass(frozen=True, kw_only=True)
class RecurrentShape:
    """Sizes and code paths of a recurrent net with a linear readout."""

    cell: Cell  # GRU (Cho et al. 2014) or LSTM (Hochreiter & Schmidhuber 1997).
    inputs: int  # numbers per step, or, for tokens, width of their embedding
    hidden: int  # width of the state
    outputs: int  # of the readout
    length: int  # steps of a row
    vocabulary: int = 0  # symbols of the tokens; 0: the inputs are numbers
    # the readout sees so many of the last steps; 0: the last one only, and there is no
    # dimension of steps in what comes out
    last: int = 0

    @property
    def cost(self) -> float:
        """Multiply-adds of the forward pass of one row."""
        step = _GATES[self.cell] * self.hidden * (self.hidden + self.inputs)
        return float(self.length * step + max(self.last, 1) * self.hidden * self.outputs)


class RecurrentNet(nn.Module):
    """A GRU or LSTM with a linear readout."""

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
