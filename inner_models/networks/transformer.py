"""Small transformers, as a user would write them: a causal decoder and a vision transformer.

Attention is two explicit matrix products around a softmax. That is what `torch.func.vmap` turns
into one batched product for all runs, while its rule for the fused kernel goes run by run. Query,
key and value have a layer each, since the backward pass of one split layer copies its parts
together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pacesetter.inner_models.networks.mlp import ACTIVATIONS, Activation

_EMBEDDING_STD = 0.1


@dataclass(frozen=True, kw_only=True)
class TransformerShape:
    """Sizes and code paths of a transformer: a language model or an image classifier.

    A language model has a `vocabulary` and a `context`; an image classifier has an `image`, a
    `patch` and `classes`, and its context follows from them.

    Attributes:
        vocabulary: symbols of a language model; 0: this is an image classifier.
        context: positions that a language model sees at most.
        image: channels, height and width of an image; None: this is a language model.
        patch: side of the square patches that an image is cut into, in pixels.
        classes: of an image.
        class_token: whether a classifier reads a token of its own, rather than the patches' mean.
        width: of the residual stream.
        heads: of attention; they share the width evenly.
        layers: blocks of attention and feed-forward net.
        expansion: width of the feed-forward nets' hidden layer over `width`.
        pre_norm: whether LayerNorm comes before each part (and once at the end), or after the sum.
        activation: of the feed-forward nets.
        dropout: share of numbers dropped from what each part adds to the stream.

    Raises:
        ValueError: sizes that do not fit together.
    """

    vocabulary: int = 0
    context: int = 0
    image: tuple[int, int, int] | None = None
    patch: int = 0
    classes: int = 0
    class_token: bool = False
    width: int = 16
    heads: int = 2
    layers: int = 2
    expansion: int = 4
    pre_norm: bool = True
    activation: Activation = "gelu"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if (self.vocabulary > 0) == (self.image is not None):
            raise ValueError(
                "a transformer needs either a vocabulary or an image size, but got "
                f"vocabulary={self.vocabulary} and image={self.image}"
            )
        if self.image is None and self.context < 1:
            raise ValueError(f"context must be a positive number of tokens, but got {self.context}")
        if self.image is not None and (
            self.patch < 1 or any(side % self.patch for side in self.image[1:])
        ):
            raise ValueError(
                f"patch must divide height and width of the image, but got {self.patch} for "
                f"{self.image}"
            )
        if self.image is not None and (self.context or self.classes < 2):
            raise ValueError(
                "an image classifier needs two classes or more, and its context follows from the "
                f"image, but got classes={self.classes} and context={self.context}"
            )
        for name in ("width", "heads", "layers", "expansion"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, but got {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(
                f"heads must divide the width, but got {self.heads} heads for width {self.width}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), but got {self.dropout}")

    @property
    def positions(self) -> int:
        """Vectors in the residual stream of one row: tokens, or patches and the class token."""
        if self.image is None:
            return self.context
        _, height, width = self.image
        return height * width // self.patch**2 + self.class_token

    @property
    def cost(self) -> float:
        """Multiply-adds of the forward pass of one row."""
        dense = (4 + 2 * self.expansion) * self.width**2
        attention = 2 * self.positions * self.width
        ends = self.vocabulary * self.width
        if self.image is not None:
            ends = self.image[0] * self.patch**2 * self.width
        return float(self.positions * (self.layers * (dense + attention) + ends))


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017), causal in a language model."""

    mask: Tensor | None

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        width = shape.width
        self.heads = shape.heads
        # A bias of the keys shifts all scores of a query alike, which softmax ignores: its
        # gradient is rounding noise, which Adam would blow up to steps of full length.
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width)
        later = torch.full((shape.positions, shape.positions), -math.inf).triu(1)
        self.register_buffer("mask", None if shape.image else later, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, length, width) -> (rows, length, width)."""
        rows, length, width = x.shape
        query, key, value = (
            part(x).view(rows, length, self.heads, -1).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        scores = query * (width // self.heads) ** -0.5 @ key.transpose(-2, -1)
        if self.mask is not None:
            scores = scores + self.mask[:length, :length]
        mixed = scores.softmax(-1) @ value
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(rows, length, width))
        return out


class Block(nn.Module):
    """Attention and a feed-forward net, each added to the residual stream."""

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        width, hidden = shape.width, shape.expansion * shape.width
        self.pre_norm = shape.pre_norm
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        feed_forward = (
            nn.Linear(width, hidden),
            ACTIVATIONS[shape.activation](),
            nn.Linear(hidden, width),
        )
        self.parts = nn.ModuleList((SelfAttention(shape), nn.Sequential(*feed_forward)))
        self.drop = nn.Dropout(shape.dropout) if shape.dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(rows, length, width) -> (rows, length, width)."""
        for norm, part in zip(self.norms, self.parts, strict=True):
            # The sum takes its memory layout from its first operand, and where runs are batched
            # that of the embedded tokens is a slow one: the stream comes second.
            x = self.drop(part(norm(x))) + x if self.pre_norm else norm(self.drop(part(x)) + x)
        return x


class LanguageModel(nn.Module):
    """A causal decoder: logits of the next token at every position (Radford et al. 2019).

    Initial weights are torch's, but for smaller embeddings.

    Raises:
        ValueError: the shape is that of an image classifier.
    """

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        if shape.image is not None:
            raise ValueError(f"expected the shape of a language model, but got {shape}")
        self.tokens = nn.Embedding(shape.vocabulary, shape.width)
        nn.init.normal_(self.tokens.weight, std=_EMBEDDING_STD)
        self.positions = _positions(shape)
        self.blocks = _blocks(shape)
        self.head = nn.Linear(shape.width, shape.vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (rows, length), int64 -> logits (rows, length, vocabulary)."""
        x = self.tokens(tokens) + self.positions[: tokens.shape[1]]
        logits: Tensor = self.head(self.blocks(x))
        return logits


class VisionTransformer(nn.Module):
    """A transformer over the patches of an image (Dosovitskiy et al. 2021).

    Raises:
        ValueError: the shape is that of a language model.
    """

    class_token: nn.Parameter | None

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        if shape.image is None:
            raise ValueError(f"expected the shape of an image classifier, but got {shape}")
        self.patch = shape.patch
        self.embed = nn.Linear(shape.image[0] * shape.patch**2, shape.width)
        self.positions = _positions(shape)
        token = nn.Parameter(torch.zeros(1, 1, shape.width))
        self.register_parameter("class_token", token if shape.class_token else None)
        self.blocks = _blocks(shape)
        self.head = nn.Linear(shape.width, shape.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (rows, channels, height, width) -> logits (rows, classes)."""
        x = self.embed(to_patches(images, self.patch))
        if self.class_token is not None:
            x = torch.cat((self.class_token.expand(len(x), -1, -1), x), dim=1)
        x = self.blocks(x + self.positions)
        logits: Tensor = self.head(x.mean(1) if self.class_token is None else x[:, 0])
        return logits


def to_patches(images: Tensor, patch: int) -> Tensor:
    """Cuts images (rows, channels, height, width) into square patches, row by row.

    The side `patch` divides height and width. Returns (rows, patches, channels * patch * patch).
    """
    rows, channels, height, width = images.shape
    cut = images.reshape(rows, channels, height // patch, patch, width // patch, patch)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(rows, -1, channels * patch * patch)


def _positions(shape: TransformerShape) -> nn.Parameter:
    return nn.Parameter(_EMBEDDING_STD * torch.randn(shape.positions, shape.width))


def _blocks(shape: TransformerShape) -> nn.Sequential:
    blocks: list[nn.Module] = [Block(shape) for _ in range(shape.layers)]
    return nn.Sequential(*blocks, *([nn.LayerNorm(shape.width)] if shape.pre_norm else []))
