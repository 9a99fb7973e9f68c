"""Languages, sequences and text: the data are what they claim, and so are the best losses."""

import math
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
    to_patches,
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
    before = model(tokens)
    for place in range(9):
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % 11
        after = model(changed)
        assert torch.equal(before[:, :place], after[:, :place])
        # What comes later does see it, and so does its own place.
        assert (before[:, place:] != after[:, place:]).any(-1).all()


def test_attention_is_that_of_torch():
    """Our blocks against `nn.TransformerEncoderLayer` with the same weights."""
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
    theirs.self_attn.out_proj.load_state_dict(attention.out.state_dict())
    theirs.linear1.load_state_dict(feed_forward[0].state_dict())
    theirs.linear2.load_state_dict(feed_forward[2].state_dict())
    theirs.norm1.load_state_dict(block.norms[0].state_dict())
    theirs.norm2.load_state_dict(block.norms[1].state_dict())
    x = torch.randn(3, 7, 8, generator=generator(), dtype=torch.float64)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64)
    assert torch.allclose(block(x), theirs(x, src_mask=mask), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("class_token", [False, True])
def test_a_vit_sees_every_patch_and_where_it_lies(class_token):
    shape = TransformerShape(
        image=(2, 4, 6), patch=2, classes=3, class_token=class_token, width=8, layers=1
    )
    torch.manual_seed(0)
    model = VisionTransformer(shape)
    assert shape.positions == 6 + class_token
    images = torch.randn(5, 2, 4, 6, generator=generator())
    logits = model(images)
    assert logits.shape == (5, 3)
    for row, column in product(range(4), range(6)):
        changed = images.clone()
        changed[:, 0, row, column] += 1
        assert ((model(changed) - logits).abs().amax(1) > 1e-7).all()
    swapped = torch.cat((images[..., 4:], images[..., 2:4], images[..., :2]), dim=3)
    assert not torch.allclose(model(swapped), logits, atol=1e-4)


def test_patches_are_squares_of_the_image():
    images = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6)
    patches = to_patches(images, 2)
    assert patches.shape == (2, 6, 12)
    expected = [images[1, c, 2 + i, 4 + j].item() for c in range(3) for i in (0, 1) for j in (0, 1)]
    assert patches[1, 5].tolist() == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 10, "heads": 4}, "4 heads for width 10"),
        ({"context": 0}, "positive number of tokens, but got 0"),
        ({"image": (1, 8, 8)}, "either a vocabulary or an image size"),
        ({"vocabulary": 0}, "either a vocabulary or an image size"),
        ({"dropout": 1.0}, "dropout must lie in"),
        ({"layers": 0}, "layers must be 1 or more, but got 0"),
        (
            {"vocabulary": 0, "context": 0, "image": (1, 8, 8), "patch": 3, "classes": 2},
            "patch must divide height and width of the image, but got 3",
        ),
        (
            {"vocabulary": 0, "context": 0, "image": (1, 8, 8), "patch": 4, "classes": 1},
            "two classes or more",
        ),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TransformerShape(**{"vocabulary": 4, "context": 8, **changes})


# -- languages ------------------------------------------------------------------------------------


def enumerated_entropy(probability, symbols, length):
    """Mean entropy of every symbol but the first, from the probabilities of all whole rows."""
    whole = {row: probability(row) for row in product(range(symbols), repeat=length)}
    assert math.isclose(sum(whole.values()), 1, rel_tol=1e-9)

    def entropy(upto):
        marginal = {}
        for row, p in whole.items():
            marginal[row[:upto]] = marginal.get(row[:upto], 0.0) + p
        return -sum(p * math.log(p) for p in marginal.values() if p)

    # The chain rule: H(x_2 .. x_T | x_1) = H(x_1 .. x_T) - H(x_1).
    return (entropy(length) - entropy(1)) / (length - 1)


@pytest.mark.parametrize("seed", range(4))
def test_the_entropy_of_a_chain_is_that_of_all_its_rows(seed):
    chain = languages.draw_chain(Draw(generator(seed)), 3, languages.LanguageRanges())

    def probability(row):
        p = float(chain.start[row[0], row[1]])
        for one, two, three in zip(row, row[1:], row[2:], strict=False):
            p *= float(chain.table[one, two, three])
        return p

    expected = enumerated_entropy(probability, 3, 6)
    assert chain.entropy(length=6) == pytest.approx(expected, rel=1e-9)
    assert 0 < expected < math.log(3)


def bracket_weight(source, row):
    """Weight of a row of a bracket language, by the definition; 0 where brackets do not match."""
    kinds = len(source.kinds)
    stack, weight = [], 1.0
    for symbol in row:
        if symbol < kinds:
            stack.append(symbol)
            weight *= float(source.moves[2] * source.kinds[symbol])
        elif symbol < 2 * kinds:
            if not stack or stack.pop() != symbol - kinds:
                return 0.0
            weight *= float(source.moves[0])
        else:
            weight *= float(source.moves[1] * source.letters[symbol - 2 * kinds])
        if len(stack) > source.depth:
            return 0.0
    return 0.0 if stack else weight


@pytest.mark.parametrize(("symbols", "length"), [(3, 8), (5, 6), (5, 5)])
def test_the_entropy_of_brackets_is_that_of_all_balanced_strings(symbols, length):
    source = languages.draw_brackets(
        Draw(generator(1)), symbols, languages.LanguageRanges(depth=(2, 2))
    )
    total = sum(bracket_weight(source, row) for row in product(range(symbols), repeat=length))
    expected = enumerated_entropy(lambda row: bracket_weight(source, row) / total, symbols, length)
    assert source.entropy(length=length) == pytest.approx(expected, rel=1e-9)


def test_brackets_are_balanced_and_as_frequent_as_their_weights():
    source = languages.draw_brackets(
        Draw(generator(2)), 5, languages.LanguageRanges(depth=(3, 3), kinds=(2, 2))
    )
    assert len(source.kinds) == 2
    (tokens,) = source.rows(4000, generator(), length=6)
    weights = np.array([bracket_weight(source, row) for row in product(range(5), repeat=6)])
    codes = (tokens.numpy() * 5 ** np.arange(5, -1, -1)).sum(1)
    assert (weights[codes] > 0).all()
    shares = np.bincount(codes, minlength=5**6) / 4000
    # Total variation: what 4,000 draws of so many strings leave is far below what an error would.
    exact = weights / weights.sum()
    resampled = np.random.default_rng(0).multinomial(4000, exact) / 4000
    assert abs(shares - exact).sum() < 1.3 * abs(resampled - exact).sum()


@pytest.mark.parametrize("seed", range(3))
def test_a_chain_follows_its_table(seed):
    chain = languages.draw_chain(Draw(generator(seed)), 4, languages.LanguageRanges())
    (tokens,) = chain.rows(20000, generator(), length=5)
    first = torch.bincount(tokens[:, 0] * 4 + tokens[:, 1], minlength=16).view(4, 4) / 20000
    assert torch.allclose(first.double(), chain.start, atol=0.02)
    pairs = tokens[:, 2] * 4 + tokens[:, 3]
    for pair in range(16):
        after = tokens[pairs == pair, 4]
        if len(after) > 1000:
            shares = torch.bincount(after, minlength=4) / len(after)
            expected = chain.table[pair // 4, pair % 4]
            assert torch.allclose(shares.double(), expected, atol=0.06)


@pytest.mark.parametrize("seed", range(3))
def test_a_chain_is_stationary_from_its_first_symbol(seed):
    chain = languages.draw_chain(
        Draw(generator(seed)), 6, languages.LanguageRanges(sharpness=(1.0, 1.0))
    )
    assert torch.allclose(chain.start.sum(0), chain.start.sum(1), atol=1e-9)


# -- sequences ------------------------------------------------------------------------------------


def test_adding_targets_are_the_marked_sums():
    clean = sequences.Adding(length=9, noise=0.0)
    inputs, targets = clean.rows(4000, generator())
    assert inputs.shape == (4000, 9, 2)
    marked = inputs[..., 1] == 1
    assert (marked.sum(1) == 2).all()
    assert (marked[:, :4].sum(1) == 1).all()
    assert ((inputs[..., 1] == 0) | marked).all()
    for row in range(50):
        one, two = (float(v) for v, mark in inputs[row] if mark)
        assert float(targets[row]) == pytest.approx((one + two) / math.sqrt(2), abs=1e-6)
    assert float(targets.std()) == pytest.approx(1, abs=0.05)
    noisy = sequences.Adding(length=9, noise=0.3)
    inputs, targets = noisy.rows(4000, generator())
    sums = (inputs[..., 0] * inputs[..., 1]).sum(1, keepdim=True) / math.sqrt(2)
    assert float((targets - sums).square().mean()) == pytest.approx(noisy.optimum, rel=0.1)


def test_copying_is_solvable_and_noise_bounds_it():
    source = sequences.Copying(length=10, symbols=5, items=3, noise=0.2)
    tokens, targets = source.rows(6000, generator())
    assert tokens.shape == (6000, 10)
    assert (tokens[:, 3:7] == 5).all()
    assert (tokens[:, 7] == 6).all()
    assert (tokens[:, 8:] == 5).all()
    # The answer is in the row: all that is wrong is the noise.
    wrong = (tokens[:, :3] != targets).double().mean().item()
    assert wrong == pytest.approx(0.2 * 4 / 5, abs=0.01)
    right = 1 - wrong
    loss = -right * math.log(right) - wrong * math.log(wrong / 4)
    assert source.optimum == pytest.approx(loss, rel=0.05)
    assert torch.equal(
        *(
            t[:, :3]
            for t in sequences.Copying(length=6, symbols=2, items=3, noise=0).rows(20, generator())
        )
    )


def test_recall_asks_for_the_value_after_the_key():
    source = sequences.Recall(length=9, symbols=4, pairs=3, noise=0.0)
    tokens, answers = source.rows(300, generator())
    for row, answer in zip(tokens.tolist(), answers.tolist(), strict=True):
        pairs = dict(zip(row[0:6:2], row[1:6:2], strict=True))
        assert len(pairs) == 3
        assert row[6:8] == [8, 8]
        assert pairs[row[8]] == answer + 4
    assert source.optimum == 0


def test_series_have_the_variance_and_the_predictability_they_claim():
    waves = torch.tensor([[3.7, 0.4], [9.1, 0.6]])
    source = sequences.Series(length=11, waves=waves, noise=0.3)
    inputs, targets = source.rows(20000, generator())
    assert inputs.shape == targets.shape == (20000, 11, 1)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert float(inputs.square().mean()) == pytest.approx(1 + 0.09, rel=0.03)
    # The best linear prediction, fitted to the rows themselves, and the best is linear.
    values = torch.cat((inputs, targets[:, -1:]), dim=1)[..., 0].double()
    errors = []
    for t in range(1, 12):
        fit = torch.linalg.lstsq(values[:, :t], values[:, t:]).solution[:, :1]
        errors.append((values[:, t] - (values[:, :t] @ fit)[:, 0]).square().mean())
    assert source.optimum == pytest.approx(float(torch.stack(errors).mean()), rel=0.02)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_recurrent_net_reads_out_its_last_states(cell):
    shape = RecurrentShape(cell=cell, inputs=3, hidden=5, outputs=2, length=7, last=4)
    torch.manual_seed(0)
    net = RecurrentNet(shape)
    x = torch.randn(6, 7, 3, generator=generator())
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
        places = []
        for row in rows[:60].tolist():
            string = "".join([*ranks, "\0"][code] for code in row)
            found = [(i, block.find(string)) for i, block in enumerate(blocks) if string in block]
            assert found
            places.append(found[0])
        if split != "train":
            # Windows of one block lie a whole row apart.
            assert all(place % (text.CONTEXT + 1) == 0 for _, place in places[:5])
            assert len(set(places)) > 55


@pytest.mark.parametrize(
    "family", [text.TextTransformer, text.TextGRU, text.SourceGRU], ids=lambda f: f.name
)
def test_text_tasks_are_of_moderate_size(family):
    draw = generator()
    for _ in range(20):
        shape = family().sample_shape(draw)
        assert 300 <= shape.job.horizon <= 2000
        work = shape.model.cost * shape.job.batch_size * shape.job.horizon
        assert work <= 1.01 * text.WORK or shape.job.horizon == 300
    task = family().build(shape, draw)
    assert task.optimizer.lr == 1e-3
    torch.manual_seed(0)
    model = task.build_model()
    loss = task.loss(model, task.splits.test).item()
    assert loss == pytest.approx(math.log(text.VOCABULARY), abs=0.7)


def test_bad_input_is_refused_with_what_came():
    with pytest.raises(ValueError, match="unknown text 'pyton'; did you mean 'python'"):
        text.read_text("pyton")
    with pytest.raises(RuntimeError, match="source of the standard library's module 'sys'"):
        text._module_source("sys")
    with pytest.raises(ValueError, match=r"between 1 and [0-9]+, but got 10000000"):
        text.text_splits("english", 10**7)
    with pytest.raises(ValueError, match=r"vocabulary must start at 3 or more, but got \(2, 8\)"):
        languages.LanguageRanges(vocabulary=(2, 8))
    with pytest.raises(ValueError, match="expected the shape of an image classifier"):
        VisionTransformer(TransformerShape(vocabulary=4, context=8))
    with pytest.raises(ValueError, match="expected the shape of a language model"):
        LanguageModel(TransformerShape(image=(1, 4, 4), patch=2, classes=2))
