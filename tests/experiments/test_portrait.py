"""The portrait of a policy: what it measures and draws, and that it keeps what people write."""

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import nn

from pacesetter.agent.policy.policy import Policy, load_policy, save_policy
from pacesetter.envs.features import FEATURE_NAMES, FEATURES, NUM_FEATURES
from pacesetter.experiments import portrait
from pacesetter.experiments.portrait import PortraitConfig, measure_file
from pacesetter.experiments.portrait_blocks import importance_block, probe_block, ranked
from pacesetter.experiments.portrait_figures import draw_probe, small_svg
from pacesetter.experiments.portrait_page import BLOCKS, PAGE, TEMPLATE, fill_page, read_page
from pacesetter.experiments.portrait_responses import (
    KINDS,
    NUM_POINTS,
    kind_importances,
    measure_responses,
)
from pacesetter.experiments.portrait_runs import (
    PROGRESS,
    TaskRuns,
    losses_by_start,
    run_task,
    schedule_bands,
)
from pacesetter.inner_models.losses import mean_squared_error
from pacesetter.inner_models.registry import HELD_OUT, META_TRAIN, VALIDATION
from pacesetter.inner_models.task import ModuleTask, Splits

ROOT = Path(__file__).resolve().parents[2]
NAMESPACES = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def linear_policy(**weights):
    """A policy whose actions are sums of weights, (3,) by feature, times the feature."""
    weight = np.zeros((3, NUM_FEATURES))
    for name, column in weights.items():
        weight[:, FEATURE_NAMES.index(name)] = column
    return Policy([(weight, [0.1, 0.0, -0.1])])


def make_states(count=300, seed=0):
    """States of which one feature is a flag, one never varies, and two are equal."""
    states = np.random.default_rng(seed).uniform(-1, 1, size=(count, NUM_FEATURES))
    states[:, FEATURE_NAMES.index("adaptive")] = np.where(np.arange(count) % 3, 1.0, -1.0)
    states[:, FEATURE_NAMES.index("nonfinite_share")] = 0.0
    states[:, FEATURE_NAMES.index("cos_update_slow")] = states[:, FEATURE_NAMES.index("cos_update")]
    return states


def generator(seed=0):
    return np.random.default_rng(seed)


def test_response_to_a_linear_policy_is_its_weight():
    policy = linear_policy(cos_update=(0.2, 0.0, -0.1), progress=(0.0, 0.05, 0.0))
    states = make_states()
    found = {
        r.feature.name: r
        for r in measure_responses(policy, states, generator=generator(), num_states=1000)
    }
    assert list(found) == list(FEATURE_NAMES)
    j = FEATURE_NAMES.index("cos_update")
    r, feature = found["cos_update"], FEATURES[j]
    tried = (r.values - feature.centre) / feature.scale
    np.testing.assert_allclose(tried[[0, -1]], np.quantile(states[:, j], (0.02, 0.98)))
    others = 0.05 * states[:, FEATURE_NAMES.index("progress")]
    np.testing.assert_allclose(r.mean[:, 0], 0.1 + 0.2 * tried, atol=1e-6)
    np.testing.assert_allclose(r.mean[:, 1], others.mean(), atol=1e-6)
    np.testing.assert_allclose(r.low[:, 1], np.quantile(others, 0.25), atol=1e-6)
    np.testing.assert_allclose(r.high[:, 1], np.quantile(others, 0.75), atol=1e-6)
    np.testing.assert_allclose(r.effect[[0, 2]], [0.2 * np.ptp(tried), -0.1 * np.ptp(tried)], 1e-5)
    # Two values of a uniform distribution differ by a third of its range on average.
    np.testing.assert_allclose(r.importance, [0.2 * 2 / 3, 0.0, 0.1 * 2 / 3], rtol=0.1)
    np.testing.assert_array_equal(found["loss_drop"].importance, 0.0)
    assert [r.feature.name for r in ranked(list(found.values()))[:2]] == ["cos_update", "progress"]
    assert ranked(list(found.values()), 1)[0].feature.name == "progress"


def test_flags_and_constants_are_tried_only_where_they_were_met():
    found = measure_responses(linear_policy(), make_states(), generator=generator())
    flag, constant, plain = (
        found[FEATURE_NAMES.index(name)] for name in ("adaptive", "nonfinite_share", "loss_drop")
    )
    np.testing.assert_allclose(flag.values, [0.0, 1.0])
    np.testing.assert_allclose(constant.values, [0.0])
    assert flag.varied
    assert not constant.varied
    assert len(plain.values) == NUM_POINTS


def test_kinds_are_all_features_once_and_are_shuffled_together():
    assert sorted(name for names in KINDS.values() for name in names) == sorted(FEATURE_NAMES)
    # The two cosines are equal in every state: what their weights take back is nothing together.
    policy = linear_policy(
        cos_update=(0.3, 0, 0), cos_update_slow=(-0.3, 0, 0), progress=(0.1, 0, 0)
    )
    states = make_states()
    kinds = kind_importances(policy, states, generator=generator())
    alone = measure_responses(policy, states, generator=generator())
    assert kinds["directions of the gradient"][0] == pytest.approx(0.0, abs=1e-9)
    assert alone[FEATURE_NAMES.index("cos_update")].importance[0] > 0.1
    assert kinds["where in the run"][0] > 0.03
    text = importance_block(alone, kinds, policy_size=np.zeros(3))
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows[2].startswith("| where in the run |")
    assert "| `cos_update_slow` | cosine of gradient and previous update" in text


@pytest.mark.parametrize("shape", [(1, NUM_FEATURES), (5, 3), (NUM_FEATURES,)])
def test_states_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"states must have shape \(n, \d+\).*but got"):
        measure_responses(linear_policy(), np.zeros(shape), generator=generator())


def make_runs(rates, *, factors=(0.1, 1.0, 10.0), task="quadratic/0", **changes):
    """Runs of two seeds whose rates are these at every point: (F,)."""
    lrs = np.tile(np.asarray(rates, dtype=float)[:, None, None], (1, 2, len(PROGRESS)))
    shape = lrs.shape
    given = {
        "task": task,
        "best_lr": 0.01,
        "factors": np.array(factors),
        "lrs": lrs,
        "momenta": np.full(shape, 0.9),
        "clip_ratios": np.full(shape, 4.0),
        "peaks": 2 * lrs.max(axis=-1),
        "scores": np.zeros(shape[:2]),
        "diverged": np.zeros(shape[:2], dtype=bool),
    }
    return TaskRuns(**{**given, **changes})


@pytest.mark.parametrize("rate", ["peak", "mean"])
def test_correction_of_a_start(rate):
    start = np.array([0.1, 1.0, 10.0])
    for runs, low, high in (
        (make_runs(3 * start), 0.0, 0.0),  # a fixed multiple of the start
        (make_runs(np.full(3, 0.7)), -1.0, -1.0),  # the same from every start
        (make_runs([0.1**0.5, 1.0, 10.0]), -0.5, 0.0),
    ):
        assert runs.correction(rate, "low") == pytest.approx(low, abs=1e-12)
        assert runs.correction(rate, "high") == pytest.approx(high, abs=1e-12)
    one = make_runs([1.0, 10.0], factors=(1.0, 10.0))
    assert np.isnan(one.correction(rate, "low"))
    assert one.correction(rate, "high") == pytest.approx(0.0, abs=1e-12)


def test_probe_tells_slopes_by_family_and_of_all():
    runs = [
        make_runs(np.full(3, 0.7)),
        make_runs(np.full(3, 0.2), task="quadratic/1"),
        make_runs([0.1, 1.0, 10.0], task="ratings/0"),
    ]
    text = probe_block(runs, generator=generator())
    assert "| quadratic | -1.00 | -1.00 | -1.00 |" in text
    assert re.search(r"\| ratings \| [+-]0\.00 \| [+-]0\.00 \| [+-]0\.00 \|", text)
    assert "| **all** | -0.67 [-1.00, " in text
    lone = [make_runs([1.0, 10.0], factors=(1.0, 10.0))]
    assert "| **all** | – | – |" in probe_block(lone, generator=generator())


def test_bands_are_means_and_quartiles_over_tasks_and_seeds():
    rng = generator()
    many = [
        make_runs([0.1, 1, 10], task=f"ratings/{i}", lrs=rng.uniform(0.1, 2, (3, 2, len(PROGRESS))))
        for i in range(3)
    ]
    band = schedule_bands(many, "lrs")[10.0]
    rows = np.concatenate([r.lrs[2] for r in many])
    np.testing.assert_allclose(band.median, np.exp(np.log(rows).mean(axis=0)))
    np.testing.assert_allclose(band.low, np.quantile(rows, 0.25, axis=0))
    np.testing.assert_allclose(band.high, np.quantile(rows, 0.75, axis=0))
    np.testing.assert_allclose(schedule_bands(many, "momenta")[0.1].median, 0.9)
    scored = [make_runs([1, 1, 1], scores=np.full((3, 2), s)) for s in (-0.2, 0.4)]
    assert losses_by_start(scored) == pytest.approx({0.1: 0.1, 1.0: 0.1, 10.0: 0.1})


def make_task(horizon=90):
    """A linear regression without noise: its best rate is well inside of the grid."""
    g = torch.Generator().manual_seed(0)
    inputs = torch.randn(160, 6, generator=g)
    targets = inputs @ torch.randn(6, 1, generator=g)
    parts = list(zip(inputs.split(40), targets.split(40), strict=True))
    return ModuleTask(
        lambda: nn.Linear(6, 1),
        mean_squared_error,
        Splits(*parts),
        horizon=horizon,
        batch_size=20,
        name="linear/0",
    )


def test_runs_of_a_policy_that_does_nothing_are_plain_cosines():
    lrs, factors = (0.001, 0.1, 3.0), (0.1, 1.0, 10.0)
    found = run_task(Policy.do_nothing(), make_task(), seeds=[1, 2], factors=factors, lrs=lrs)
    assert found.family == "linear"
    assert found.best_lr == 0.1
    assert found.lrs.shape == (3, 2, len(PROGRESS))
    after_ramp = PROGRESS > 0.1
    cosine = 0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * PROGRESS))
    for i, factor in enumerate(factors):
        curve = np.broadcast_to(factor * cosine, (2, len(PROGRESS)))
        np.testing.assert_allclose(
            found.lrs[i][:, after_ramp], curve[:, after_ramp], atol=0.04 * factor
        )
        assert 0.97 * factor < found.peaks[i].min() <= found.peaks[i].max() <= factor
    np.testing.assert_allclose(found.momenta, 0.9)
    np.testing.assert_allclose(found.clip_ratios, Policy.do_nothing().control.clip_ratio_start)
    for side in ("low", "high"):
        assert found.correction("peak", side) == pytest.approx(0.0, abs=1e-9)
    assert not found.diverged.any()
    # A tenth of the best rate is clearly worse than it, and scores are relative to the best.
    assert found.scores[0].min() > found.scores[1].max()
    assert found.scores[0].min() > 0.5


def test_runs_of_a_policy_that_raises_the_rate():
    raises = Policy([(np.zeros((3, NUM_FEATURES)), [0.5, 0.5, -0.5])])
    found = run_task(raises, make_task(), seeds=[1], factors=(0.1, 1.0), lrs=(0.01,))
    plain = run_task(Policy.do_nothing(), make_task(), seeds=[1], factors=(0.1, 1.0), lrs=(0.01,))
    assert (found.peaks > 2 * plain.peaks).all()
    assert found.momenta[..., -1].max() < 0.9
    assert found.clip_ratios[..., -1].max() < found.clip_ratios[..., 0].min()


def test_only_meta_train_and_validation_families_are_run():
    for family in (HELD_OUT[0], "mnist-mlp", "no-such"):
        with pytest.raises(ValueError, match=f"families must be some of .*but got {family}"):
            PortraitConfig(families=(VALIDATION[0], family))
    with pytest.raises(ValueError, match="feature_families must be some of"):
        PortraitConfig(feature_families=VALIDATION[:1])
    with pytest.raises(ValueError, match=r"families must be some of .*but got none"):
        PortraitConfig(families=())
    with pytest.raises(ValueError, match="num_seeds must be positive, but got 0"):
        PortraitConfig(num_seeds=0)
    assert set(PortraitConfig().families) <= {*META_TRAIN, *VALIDATION}


def test_file_is_measured(tmp_path):
    path = save_policy(linear_policy(), tmp_path / "p.safetensors")
    facts = measure_file(str(path), num_loads=3)
    assert facts.num_bytes == path.stat().st_size
    assert facts.load_ms > 0
    assert str(facts).startswith(f"{path.stat().st_size / 1000:.1f} kB; loaded in ")


def test_page_keeps_what_is_written_by_hand():
    blocks = {name: f"# {name} \\1" for name in BLOCKS}
    filled = fill_page(TEMPLATE.replace("Not written yet for this policy.", "Mine."), blocks)
    assert "Mine." in filled
    assert all(text in filled for text in blocks.values())
    assert fill_page(filled, blocks) == filled
    assert "# facts" not in fill_page(filled, {"facts": "other"})


@pytest.mark.parametrize(
    "broken",
    [
        TEMPLATE.replace("<!-- end probe -->", ""),
        TEMPLATE.replace("<!-- begin probe -->", ""),
        TEMPLATE + "<!-- begin probe -->\n",
        TEMPLATE.replace("begin probe", "x")
        .replace("end probe", "begin probe")
        .replace("x", "end probe"),
    ],
    ids=["no end", "no beginning", "twice", "reversed"],
)
def test_page_without_marks_is_refused_before_anything_runs(broken, tmp_path, monkeypatch):
    (tmp_path / PAGE).write_text(broken, encoding="utf-8")
    monkeypatch.setattr(portrait, "take_portrait", lambda *_, **__: pytest.fail("too late"))
    with pytest.raises(ValueError, match="needs the lines '<!-- begin probe -->'"):
        portrait.main(["--out", str(tmp_path)])


def test_svg_is_made_smaller_without_breaking_references():
    svg = (
        '<svg><g id="a_1"><path id="m1" d="M 1.23456 2 \nL 3 4 \n"/><use href="#m1" x="1.23456"/>'
        "<text style=\"font: 8px 'A', 'B', sans-serif; fill: #fff\" transform=\"rotate(-0 1 2)\">"
        "1.23456</text></g></svg>"
    )
    assert small_svg(svg) == (
        '<svg><g><path id="m1" d="M 1.23 2 L 3 4 "/><use href="#m1" x="1.23"/>'
        '<text style="font: 8px sans-serif; fill: #fff">1.23456</text></g></svg>'
    )


def test_portrait_from_a_file_by_one_command(tmp_path, capsys, monkeypatch):
    command = "--families logistic --tasks-per-family 1 --num-seeds 1 --feature-runs 4 --quiet"
    portrait.main([*command.split(), "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    shipped = load_policy()
    assert f"policy file: {len(shipped.to_bytes()) / 1000:.1f} kB; loaded in " in printed
    page = tmp_path / PAGE
    text = page.read_text(encoding="utf-8")
    assert shipped.digest[:16] in text
    assert "--policy default --out docs --families logistic --tasks-per-family 1" in text
    assert str(tmp_path) not in text
    assert "nan" not in text
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert sorted(pictures) == sorted(
        p.relative_to(tmp_path).as_posix() for p in tmp_path.glob("figures/*")
    )
    for name in pictures:
        data = (tmp_path / name).read_bytes()
        assert 5_000 < len(data) < 150_000, name
        ElementTree.fromstring(data)
        assert set(re.findall(r"https?://[^\"' ]+", data.decode())) <= NAMESPACES | {
            "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd"
        }
    # Once more, without the pictures: what is written by hand stays, the numbers are the same.
    page.write_text(text.replace("Not written yet for this policy.", "Mine."), encoding="utf-8")
    for name in ("draw_schedules", "draw_probe", "draw_responses"):
        monkeypatch.setattr(portrait, name, lambda *_, **__: None)
    portrait.main([*command.split(), "--out", str(tmp_path)])
    again = page.read_text(encoding="utf-8").replace("Mine.", "Not written yet for this policy.")
    timed = r"loaded in [\d.]+ ms"
    assert "Mine." in page.read_text(encoding="utf-8")
    assert re.sub(timed, "", again) == re.sub(timed, "", text)


def test_a_figure_is_drawn_the_same_again(tmp_path):
    runs = [make_runs([0.5, 1.0, 2.0]), make_runs([0.1, 1.0, 10.0])]
    for name in "ab":
        draw_probe(runs, tmp_path / f"{name}.svg")
    first, second = ((tmp_path / f"{name}.svg").read_bytes() for name in "ab")
    assert first == second
    draw_probe(runs[:1], tmp_path / "b.svg")
    assert first != (tmp_path / "b.svg").read_bytes()


def test_page_of_the_documentation_can_be_made_again():
    page = ROOT / "docs" / PAGE
    text = read_page(page)
    pictures = re.findall(r"\]\((figures/[^)]+)\)", text)
    assert len(pictures) == 8
    assert all(5_000 < (page.parent / name).stat().st_size < 150_000 for name in pictures)
