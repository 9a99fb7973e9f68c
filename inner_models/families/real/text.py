"""Character models of real text, for reports only: English documentation and Python source.

Both texts come with Python, so that nothing has to be fetched; they differ from version to version.
A text is cut into blocks, and every tenth block goes to one of the splits for evaluation: they are
as alike as stretches of one text can be, and share no character of it.
"""

from __future__ import annotations

import importlib.util
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pacesetter.inner_models.draw import Draw
from pacesetter.inner_models.families.base import Job, RealFamily, RealProblem, Shape
from pacesetter.inner_models.lookup import check_name
from pacesetter.inner_models.losses import next_token_loss
from pacesetter.inner_models.networks.mlp import ACTIVATIONS
from pacesetter.inner_models.networks.recurrent import RecurrentNet, RecurrentShape
from pacesetter.inner_models.networks.transformer import LanguageModel, TransformerShape
from pacesetter.inner_models.task import Splits

VOCABULARY = 80
"""Symbols: the 79 most common characters, and one for all others."""
CONTEXT = 32
"""Characters that a model sees; a row has one more."""
BLOCK = 2048
"""Characters of the blocks that are dealt out to the splits."""
EVAL_ROWS = 400
"""Most rows of a split for evaluation."""
WORK = 4e10
"""Most multiply-adds of a run's forward passes, save where 300 steps take more."""
MODULES = (
    *("argparse", "ast", "calendar", "configparser", "contextlib", "csv", "dataclasses"),
    *("fractions", "functools", "heapq", "ipaddress", "logging", "pickle", "random", "shutil"),
    *("statistics", "subprocess", "textwrap", "tokenize", "traceback"),
)
"""Modules of the standard library whose source is the Python text."""


def _documentation() -> str:
    """The topics of Python's built-in help, in alphabetical order."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def _source() -> str:
    return "\n\n".join(_module_source(name) for name in MODULES)


def _module_source(name: str) -> str:
    """Source of a module, which is found but not run."""
    spec = importlib.util.find_spec(name)
    loader: Any = spec.loader if spec else None
    source: str | None = loader.get_source(name) if hasattr(loader, "get_source") else None
    if not source:
        raise RuntimeError(
            f"the Python text needs the source of the standard library's module {name!r}, which "
            "this Python comes without"
        )
    return source


TEXTS: dict[str, Callable[[], str]] = {"english": _documentation, "python": _source}
"""What reads a text, by its name."""


@cache
def read_text(name: str) -> str:
    """A text.

    Args:
        name: ``"english"`` (the documentation in Python's built-in help) or ``"python"`` (source
            of modules of the standard library).

    Raises:
        ValueError: there is no such text.
        RuntimeError: this Python comes without the source of its library.
    """
    check_name(name, TEXTS, kind="text")
    return TEXTS[name]()


def deal_blocks(text: str) -> dict[str, list[str]]:
    """Deals a text's blocks out: of every ten, seven to train, one to each of the others."""
    blocks = [text[start : start + BLOCK] for start in range(0, len(text), BLOCK)]
    dealt: dict[str, list[str]] = {"train": [b for i, b in enumerate(blocks) if i % 10 < 7]}
    for turn, name in enumerate(("inner_valid", "outer_valid", "test"), start=7):
        dealt[name] = blocks[turn::10]
    return dealt


def windows(blocks: list[str], symbols: dict[str, int], *, stride: int) -> Tensor:
    """Rows of CONTEXT + 1 characters, int64, `stride` apart; each within one block.

    Characters that `symbols` has no number for get the last number there is.
    """
    rows = []
    for block in blocks:
        codes = torch.tensor([symbols.get(c, VOCABULARY - 1) for c in block], dtype=torch.int64)
        if len(codes) > CONTEXT:
            rows.append(codes.unfold(0, CONTEXT + 1, stride))
    return torch.cat(rows)


@cache
def text_splits(name: str, num_train: int) -> Splits:
    """A text as rows of characters, one tensor (rows, CONTEXT + 1) for each split.

    Training rows begin every half context and are taken in one random order, the first `num_train`;
    rows of the other splits do not overlap, and are up to 400, evenly spread.

    Raises:
        ValueError: the text is unknown, or too short for so many training rows.
    """
    dealt = deal_blocks(read_text(name))
    # Ties go by the character itself: a Counter would go by which came first.
    common = sorted(Counter("".join(dealt["train"])).items(), key=lambda item: (-item[1], item[0]))
    symbols = {character: i for i, (character, _) in enumerate(common[: VOCABULARY - 1])}
    train = windows(dealt.pop("train"), symbols, stride=CONTEXT // 2)
    if not 1 <= num_train <= len(train):
        raise ValueError(f"num_train must lie between 1 and {len(train)}, but got {num_train}")
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(train)))
    parts = [train[order[:num_train]]]
    for blocks in dealt.values():
        rows = windows(blocks, symbols, stride=CONTEXT + 1)
        spread = torch.linspace(0, len(rows) - 1, min(EVAL_ROWS, len(rows))).long()
        parts.append(rows[spread])
    return Splits(*((part,) for part in parts))


Model = TypeVar("Model", TransformerShape, RecurrentShape)


class TextFamily(RealFamily[Model]):
    """Character models of the text called `text`; subclasses say which, and by which model.

    Train splits have 500, 1,500 or 4,000 rows; batches 16 to 64 and horizons 300 to 2,000 steps,
    less where one run would take long.
    """

    text: str

    @staticmethod
    @abstractmethod
    def build_model(shape: Model) -> nn.Module:
        """Makes a freshly initialised network."""

    def draw_job(self, draw: Draw, model: Model) -> Job:
        num_train = draw.choice((500, 1500, 4000))
        batch_size = draw.power_of_two(16, 64)
        while batch_size > 16 and model.cost * batch_size * 300 > WORK:
            batch_size //= 2
        longest = min(2000, max(300, round(WORK / (model.cost * batch_size))))
        horizon = draw.log_integer(300, longest)
        return Job(num_train=num_train, batch_size=batch_size, horizon=horizon)

    def draw_problem(self, shape: Shape[Model], draw: Draw) -> RealProblem:
        return RealProblem(
            build_model=partial(self.build_model, shape.model),
            loss=next_token_loss,
            splits=text_splits(self.text, shape.job.num_train),
        )


class TextTransformer(TextFamily[TransformerShape]):
    """Causal transformers over the characters of English documentation."""

    name = "text-transformer"
    text = "english"
    build_model = staticmethod(LanguageModel)

    def draw_model(self, draw: Draw) -> TransformerShape:
        return TransformerShape(
            vocabulary=VOCABULARY,
            context=CONTEXT,
            width=draw.choice((32, 48, 64)),
            heads=draw.choice((2, 4)),
            layers=draw.integer(1, 2),
            pre_norm=not draw.chance(0.2),
            activation=draw.choice(tuple(ACTIVATIONS)),
        )


class TextGRU(TextFamily[RecurrentShape]):
    """GRUs over the characters of English documentation; embedding and state have one width."""

    name = "text-gru"
    text = "english"
    build_model = staticmethod(RecurrentNet)

    def draw_model(self, draw: Draw) -> RecurrentShape:
        width = draw.log_integer(32, 64)
        return RecurrentShape(
            cell="gru",
            vocabulary=VOCABULARY,
            inputs=width,
            hidden=width,
            outputs=VOCABULARY,
            length=CONTEXT,
            last=CONTEXT,
        )


class SourceGRU(TextGRU):
    """GRUs over the characters of Python source."""

    name = "source-gru"
    text = "python"
