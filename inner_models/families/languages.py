"""Small transformers on generated languages, whose entropy, and so the least loss, is known.

Markov chains ask for tables of transitions, learned early or memorised; bracket languages for a
memory of what is open, learned late.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from pacesetter.inner_models.draw import Draw, IntRange, Range
from pacesetter.inner_models.families.base import GeneratedFamily, JobRanges, Problem, Shape
from pacesetter.inner_models.losses import next_token_loss
from pacesetter.inner_models.networks.mlp import ACTIVATIONS
from pacesetter.inner_models.networks.transformer import LanguageModel, TransformerShape
from pacesetter.inner_models.task import Batch

_CLOSE, _FILL, _OPEN = 0, 1, 2  # the depth changes by this, less 1
_MIXING_STEPS = 64


@dataclass(frozen=True)
class MarkovChain:
    """A stationary source in which a symbol depends on the two before it, or on one."""

    start: Tensor  # (symbols, symbols), probabilities of the first two symbols of a row
    table: Tensor  # (symbols, symbols, symbols), probabilities of a symbol after the two before it

    def rows(self, count: int, generator: torch.Generator, *, length: int) -> Batch:
        """Draws `count` independent rows: tokens (count, length), int64."""
        symbols = len(self.start)
        chance = torch.rand(length, count, generator=generator, dtype=torch.float64)
        first = _pick(self.start.flatten().expand(count, -1), chance[0])
        tokens = [first // symbols, first % symbols]
        for t in range(2, length):
            tokens.append(_pick(self.table[tokens[-2], tokens[-1]], chance[t]))
        return (torch.stack(tokens, dim=1),)

    def entropy(self, *, length: int) -> float:
        """Mean entropy, in nats, of every symbol of a row but the first, given those before it."""
        pair = self.start
        total = float(_entropy(pair.flatten()) - _entropy(pair.sum(1)))
        each = _entropy(self.table)
        for _ in range(2, length):
            total += float((pair * each).sum())
            pair = _step(pair, self.table)
        return total / (length - 1)


@dataclass(frozen=True)
class Brackets:
    """Strings of brackets that match and are all closed at the end, with other letters between.

    The first `kinds` symbols open, the next `kinds` close, the rest are letters. A string is a
    walk over depths, conditioned on its return to zero.
    """

    kinds: Tensor  # (kinds,), probabilities of the kinds of an opening bracket
    letters: Tensor  # (letters,), probabilities of the letters; one or more
    # (3,), weights of closing, of a letter and of opening, where the depth allows them
    moves: Tensor
    depth: int  # most brackets that are open at a time

    def rows(self, count: int, generator: torch.Generator, *, length: int) -> Batch:
        """Draws `count` independent rows: tokens (count, length), int64."""
        walk = self._walk(length)
        chance = torch.rand(2, length, count, generator=generator, dtype=torch.float64)
        depth = torch.zeros(count, dtype=torch.int64)
        opened = torch.zeros(count, self.depth + 2, dtype=torch.int64)  # kinds by depth
        every = torch.arange(count)
        tokens = []
        for t in range(length):
            move = _pick(walk[t, depth], chance[0, t])
            kind = _pick(self.kinds.expand(count, -1), chance[1, t])
            letter = _pick(self.letters.expand(count, -1), chance[1, t])
            closed = opened[every, depth]
            depth = depth + move - 1
            opened[every, depth] = torch.where(move == _OPEN, kind, opened[every, depth])
            symbol = torch.where(move == _OPEN, kind, len(self.kinds) + closed)
            tokens.append(torch.where(move == _FILL, 2 * len(self.kinds) + letter, symbol))
        return (torch.stack(tokens, dim=1),)

    def entropy(self, *, length: int) -> float:
        """Mean entropy, in nats, of every symbol of a row but the first, given those before it."""
        walk = self._walk(length)
        inside = torch.zeros(3, dtype=torch.float64)  # which letter, which kind: closing has none
        inside[_FILL], inside[_OPEN] = _entropy(self.letters), _entropy(self.kinds)
        at = torch.zeros(self.depth + 1, dtype=torch.float64)
        at[0] = 1.0
        total = 0.0
        for t in range(length):
            if t:
                total += float(at @ (_entropy(walk[t]) + walk[t] @ inside))
            moved = at[:, None] * walk[t]
            at = moved[:, _FILL].clone()
            at[1:] += moved[:-1, _OPEN]
            at[:-1] += moved[1:, _CLOSE]
        return total / (length - 1)

    def _walk(self, length: int) -> Tensor:
        """Probabilities of the moves, (length, depths, 3), given that the walk returns to zero."""
        walk = torch.zeros(length, self.depth + 1, 3, dtype=torch.float64)
        returns = torch.zeros(self.depth + 1, dtype=torch.float64)  # weight of all ways back
        returns[0] = 1.0
        for t in reversed(range(length)):
            walk[t, 1:, _CLOSE] = self.moves[_CLOSE] * returns[:-1]
            walk[t, :, _FILL] = self.moves[_FILL] * returns
            walk[t, :-1, _OPEN] = self.moves[_OPEN] * returns[1:]
            returns = walk[t].sum(1)
            # Depths with no way back in time are never entered; they get no probability at all.
            walk[t] /= returns.clamp(min=torch.finfo(torch.float64).tiny)[:, None]
            returns = returns / returns.max()
        return walk


Source = MarkovChain | Brackets


@dataclass(frozen=True, kw_only=True)
class LanguageRanges(JobRanges):
    """Ranges of the language family, beside those of every job (`JobRanges`)."""

    vocabulary: IntRange = (4, 24)  # number of symbols
    context: IntRange = (6, 20)  # tokens that a model sees; a row has one more
    width: IntRange = (8, 24)  # of the residual stream, a multiple of 4
    layers: IntRange = (1, 2)  # blocks of a transformer
    sharpness: Range = (0.7, 5.0)  # spread of the logarithms of a chain's transition probabilities
    noise: Range = (0.01, 0.2)  # share of a chain's symbols that follow nothing
    kinds: IntRange = (1, 4)  # kinds of brackets
    depth: IntRange = (2, 6)  # most brackets that are open at a time
    letters_weight: Range = (0.1, 1.0)  # of a letter, where opening and closing weigh one together
    bracket_share: float = 0.4  # share of bracket languages
    # share of chains whose symbols depend on two before them, not one
    second_order_share: float = 0.5
    post_norm_share: float = 0.3  # share of transformers with LayerNorm after the sums
    batch_size: IntRange = (8, 256)
    adam_lr: Range = (1e-2, 3.2e-2)
    sgd_lr: Range = (0.18, 0.56)
    rmsprop_lr: Range = (1.8e-4, 5.6e-4)
    work: float = 8e8

    LEAST: ClassVar[dict[str, int]] = {
        **JobRanges.LEAST,
        # A bracket language has a pair of brackets and a letter; four heads need a width of four.
        **{"vocabulary": 3, "context": 1, "width": 4, "layers": 1, "kinds": 1, "depth": 1},
    }


@dataclass(frozen=True)
class LanguageTransformer(GeneratedFamily[TransformerShape]):
    """Causal transformers that predict the next symbol of a generated language."""

    ranges: LanguageRanges = field(default_factory=LanguageRanges)
    name: str = "language-transformer"

    def draw_model(self, draw: Draw) -> TransformerShape:
        r = self.ranges
        return TransformerShape(
            vocabulary=draw.log_integer(*r.vocabulary),
            context=draw.log_integer(*r.context),
            width=4 * draw.log_integer(r.width[0] // 4, r.width[1] // 4),
            heads=draw.choice((1, 2, 4)),
            layers=draw.integer(*r.layers),
            expansion=draw.choice((2, 4)),
            pre_norm=not draw.chance(r.post_norm_share),
            activation=draw.choice(tuple(ACTIVATIONS)),
        )

    def cost(self, model: TransformerShape) -> float:
        return model.cost

    def draw_problem(self, shape: Shape[TransformerShape], draw: Draw) -> Problem:
        model, length = shape.model, shape.model.context + 1
        draw_source = draw_brackets if draw.chance(self.ranges.bracket_share) else draw_chain
        source = draw_source(draw, model.vocabulary, self.ranges)
        return Problem(
            build_model=partial(LanguageModel, model),
            loss=next_token_loss,
            rows=partial(source.rows, length=length),
            optimum=source.entropy(length=length),
        )


def draw_chain(draw: Draw, symbols: int, ranges: LanguageRanges) -> MarkovChain:
    """Draws a Markov chain of order 1 or 2 over so many symbols."""
    order = 2 if draw.chance(ranges.second_order_share) else 1
    spread = draw.log_uniform(*ranges.sharpness)
    logits = torch.randn(*[symbols] * (order + 1), generator=draw.generator, dtype=torch.float64)
    noise = draw.log_uniform(*ranges.noise)
    table = (1 - noise) * (spread * logits).softmax(-1) + noise / symbols
    table = table.expand(symbols, symbols, symbols)
    start = torch.full((symbols, symbols), 1 / symbols**2, dtype=torch.float64)
    for _ in range(_MIXING_STEPS):
        start = (start + _step(start, table)) / 2  # halved, so that no cycle goes on for ever
    return MarkovChain(_step(start, table), table)


def draw_brackets(draw: Draw, symbols: int, ranges: LanguageRanges) -> Brackets:
    """Draws a bracket language over so many symbols, three or more, at least one a letter."""
    kinds = min(draw.integer(*ranges.kinds), (symbols - 1) // 2)
    opening = draw.uniform(0.3, 0.7)
    moves = (1 - opening, draw.log_uniform(*ranges.letters_weight), opening)
    return Brackets(
        kinds=_random_probabilities(draw, kinds),
        letters=_random_probabilities(draw, symbols - 2 * kinds),
        moves=torch.tensor(moves, dtype=torch.float64),
        depth=draw.integer(*ranges.depth),
    )


def _random_probabilities(draw: Draw, options: int) -> Tensor:
    return torch.randn(options, generator=draw.generator, dtype=torch.float64).softmax(0)


def _step(pair: Tensor, table: Tensor) -> Tensor:
    """Distribution of (previous, last) symbol -> the same one symbol later."""
    return torch.einsum("ab,abc->bc", pair, table)


def _pick(probabilities: Tensor, chance: Tensor) -> Tensor:
    """Options, (rows,), by their probabilities (rows, options) and uniform numbers (rows,)."""
    bounds = probabilities.cumsum(-1)
    # Times a total that is not quite one: what is impossible stays so.
    chance = chance[:, None] * bounds[:, -1:]
    return torch.searchsorted(bounds[:, :-1].contiguous(), chance, right=True)[:, 0]


def _entropy(probabilities: Tensor) -> Tensor:
    """Entropy over the last dimension, in nats."""
    return -torch.xlogy(probabilities, probabilities).sum(-1)
