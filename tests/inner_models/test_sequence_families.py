"""Languages, sequences and text: the data are what they claim, and so are the best losses."""

import math
from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch

from pacesetter.inner_models.draw import Draw
from pacesetter.inner_models.families import languages, sequences
from pacesetter.inner_models.families.real import text
from pacesetter.inner_models.networks.recurrent import RecurrentNet, RecurrentShape
from pacesetter.inner_models.networks.transformer import (
    LanguageModel,
    TransformerShape,
    VisionTransformer,
)
from pacesetter.inner_models.task import SPLITS


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# -- transformers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("pre_norm", [True, False])
def test_a_future_token_changes_no_earlier_output(pre_norm):
    shape = TransformerShape(vocabulary=11, context=9, width=12, heads=3, pre_norm=pre_norm)
    torch.manual_seed(0)
    model = LanguageModel(shape).double()
    tokens = torch.randint(11, (4, 9), generator=generator())
    for place in range(9):
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % 11
        # What comes later does see it, and so does its own place.
        differs = (model(tokens) != model(changed)).any(-1)
        assert (differs == (torch.arange(9) >= place)).all()


def test_attention_is_that_of_torch():
    torch.manual_seed(0)
    ours = LanguageModel(TransformerShape(vocabulary=5, context=7, width=8, heads=2))
    block = ours.blocks[0].double()
    theirs = torch.nn.TransformerEncoderLayer(
        8, 2, 32, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    ).double()
    attention, feed_forward = block.parts
    with torch.no_grad():
        parts = [attention.query, attention.key, attention.value]
        theirs.self_attn.in_proj_weight.copy_(torch.cat([p.weight for p in parts]))
        theirs.self_attn.in_proj_bias.zero_()
    for left, right in (
        (theirs.self_attn.out_proj, attention.out),
        (theirs.linear1, feed_forward[0]),
        (theirs.linear2, feed_forward[2]),
        (theirs.norm1, block.norms[0]),
        (theirs.norm2, block.norms[1]),
    ):
        left.load_state_dict(right.state_dict())
    x = torch.randn(3, 7, 8, generator=generator(), dtype=torch.float64)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64)
    assert torch.allclose(block(x), theirs(x, src_mask=mask), rtol=1e-10, atol=1e-12)


# -- languages ------------------------------------------------------------------------------------


def enumerated_entropy(chances):
    """Mean entropy of every symbol but the first, from the probabilities of all whole rows."""

    def entropy(upto):
        marginal = Counter()
        for row, p in chances.items():
            marginal[row[:upto]] += p
        return -sum(p * math.log(p) for p in marginal.values() if p)

    # The chain rule: H(x_2 .. x_T | x_1) = H(x_1 .. x_T) - H(x_1).
    length = len(next(iter(chances)))
    return (entropy(length) - entropy(1)) / (length - 1)


def chain_weight(source, row):
    weight = float(source.start[row[0], row[1]])
    for one, two, three in zip(row, row[1:], row[2:], strict=False):
        weight *= float(source.table[one, two, three])
    return weight


def bracket_weight(source, row):
    """Weight of a row of a bracket language, by the definition; 0 where brackets do not match."""
    kinds, stack, weight = len(source.kinds), [], 1.0
    for symbol in row:
        if symbol < kinds:
            stack.append(symbol)
            weight *= float(source.moves[2] * source.kinds[symbol])
        elif symbol < 2 * kinds:
            weight *= float(source.moves[0]) * bool(stack and stack.pop() == symbol - kinds)
        else:
            weight *= float(source.moves[1] * source.letters[symbol - 2 * kinds])
        weight *= len(stack) <= source.depth
    return 0.0 if stack else weight


@pytest.mark.parametrize(
    ("draw", "weight", "symbols", "length"),
    [
        (languages.draw_chain, chain_weight, 3, 6),
        (languages.draw_brackets, bracket_weight, 3, 8),
        (languages.draw_brackets, bracket_weight, 5, 6),
        (languages.draw_brackets, bracket_weight, 5, 5),
    ],
)
def test_rows_and_entropy_of_a_language_are_those_of_all_its_strings(draw, weight, symbols, length):
    source = draw(Draw(generator(1)), symbols, languages.LanguageRanges(depth=(2, 2)))
    weights = {row: weight(source, row) for row in product(range(symbols), repeat=length)}
    total = sum(weights.values())
    chances = {row: w / total for row, w in weights.items()}
    assert draw is languages.draw_brackets or total == pytest.approx(1)
    assert source.entropy(length=length) == pytest.approx(enumerated_entropy(chances), rel=1e-9)
    (tokens,) = source.rows(4000, generator(), length=length)
    seen = Counter(map(tuple, tokens.tolist()))
    assert all(weights[row] > 0 for row in seen)
    # Total variation: what 4,000 draws of so many strings leave is far below what an error would.
    exact = np.array(list(chances.values()))
    shares = np.array([seen[row] for row in chances]) / 4000
    resampled = np.random.default_rng(0).multinomial(4000, exact) / 4000
    assert abs(shares - exact).sum() < 1.3 * abs(resampled - exact).sum()


# -- sequences ------------------------------------------------------------------------------------


def test_adding_targets_are_the_marked_sums_and_their_noise_is_the_optimum():
    source = sequences.Adding(length=9, noise=0.3)
    inputs, targets = source.rows(4000, generator())
    values, marks = inputs.unbind(2)
    assert marks.unique().tolist() == [0, 1]
    assert (marks.sum(1) == 2).all()
    assert (marks[:, :4].sum(1) == 1).all()
    sums = (values * marks).sum(1, keepdim=True) / math.sqrt(2)
    assert float((targets - sums).square().mean()) == pytest.approx(source.optimum, rel=0.1)


def test_copying_is_solvable_and_noise_bounds_it():
    source = sequences.Copying(length=10, symbols=5, items=3, noise=0.2)
    tokens, targets = source.rows(6000, generator())
    assert (tokens[:, 3:] == torch.tensor([5, 5, 5, 5, 6, 5, 5])).all()
    # The answer is in the row: all that is wrong is the noise.
    wrong = (tokens[:, :3] != targets).double().mean().item()
    assert wrong == pytest.approx(0.2 * 4 / 5, abs=0.01)
    right = 1 - wrong
    loss = -right * math.log(right) - wrong * math.log(wrong / 4)
    assert source.optimum == pytest.approx(loss, rel=0.05)


def test_recall_asks_for_the_value_after_the_key():
    source = sequences.Recall(length=9, symbols=4, pairs=3, noise=0.0)
    tokens, answers = source.rows(300, generator())
    for row, answer in zip(tokens.tolist(), answers.tolist(), strict=True):
        pairs = dict(zip(row[0:6:2], row[1:6:2], strict=True))
        assert len(pairs) == 3
        assert row[6:8] == [8, 8]
        assert pairs[row[8]] == answer + 4
    assert source.optimum == 0


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_recurrent_net_reads_out_its_last_states(cell):
    shape = RecurrentShape(cell=cell, inputs=3, hidden=5, outputs=2, length=7, last=4)
    net, x = RecurrentNet(shape), torch.randn(6, 7, 3, generator=generator())
    states = net.core(x)[0]
    assert torch.equal(net(x), net.readout(states)[:, 3:])
    net.last = 0
    assert torch.allclose(net(x), net.readout(states)[:, -1], atol=1e-6)


# -- text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["english", "python"])
def test_the_splits_of_a_text_do_not_overlap(name):
    """Every block is a stretch of its own, and together they are the text."""
    whole = text.read_text(name)
    dealt = text.deal_blocks(whole)
    assert sum(len(block) for blocks in dealt.values() for block in blocks) == len(whole)
    owners = {"train": range(7), "inner_valid": [7], "outer_valid": [8], "test": [9]}
    for split, blocks in dealt.items():
        count = -(-len(whole) // text.BLOCK)
        places = [i for i in range(count) if i % 10 in owners[split]]
        for place, block in zip(places, blocks, strict=True):
            assert whole[place * text.BLOCK :][: text.BLOCK] == block


def test_rows_of_a_text_are_windows_of_their_blocks():
    splits = text.text_splits("english", 500)
    assert [splits.num_rows(split) for split in SPLITS] == [500, 400, 400, 400]
    dealt = text.deal_blocks(text.read_text("english"))
    train = "".join(dealt["train"])
    ranks = sorted(set(train), key=lambda c: (-train.count(c), c))[: text.VOCABULARY - 1]
    for split in SPLITS:
        (rows,) = getattr(splits, split)
        assert rows.shape[1] == text.CONTEXT + 1
        blocks = ["".join(c if c in set(ranks) else "\0" for c in block) for block in dealt[split]]
        for row in rows[:60].tolist():
            string = "".join([*ranks, "\0"][code] for code in row)
            assert any(string in block for block in blocks)


IMAGE = {"vocabulary": 0, "context": 0, "image": (1, 8, 8), "patch": 4, "classes": 2}


def shape(**changes):
    return TransformerShape(**{"vocabulary": 4, "context": 8, **changes})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: shape(width=10, heads=4), "4 heads for width 10"),
        (lambda: shape(context=0), "positive number of tokens, but got 0"),
        (lambda: shape(image=(1, 8, 8)), "either a vocabulary or an image size"),
        (lambda: shape(vocabulary=0), "either a vocabulary or an image size"),
        (lambda: shape(dropout=1.0), "dropout must lie in"),
        (lambda: shape(layers=0), "layers must be 1 or more, but got 0"),
        (lambda: shape(**IMAGE | {"patch": 3}), "patch must divide height .* but got 3"),
        (lambda: shape(**IMAGE | {"classes": 1}), "two classes or more"),
        (lambda: VisionTransformer(shape()), "expected the shape of an image classifier"),
        (lambda: LanguageModel(shape(**IMAGE)), "expected the shape of a language model"),
        (lambda: text.read_text("pyton"), "unknown text 'pyton'; did you mean 'python'"),
        (lambda: text._module_source("sys"), "source of the standard library's module 'sys'"),
        (lambda: text.text_splits("english", 10**7), "between 1 and [0-9]+, but got 10000000"),
        (lambda: languages.LanguageRanges(vocabulary=(2, 8)), r"3 or more, but got \(2, 8\)"),
    ],
)
def test_bad_input_is_refused_with_what_came(make, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        make()
