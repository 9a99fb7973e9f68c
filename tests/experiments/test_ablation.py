"""The ablation: what its variants change, its statistics by hand, and one tiny run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pacesetter.agent.policy.policy import load_policy
from pacesetter.agent.training.train import train
from pacesetter.envs.features import FEATURE_NAMES
from pacesetter.experiments import ablation
from pacesetter.experiments.presets import get_preset


def test_every_variant_differs_from_the_recipe_and_from_the_others():
    known = ablation.variants(get_preset("laptop"))
    assert next(iter(known)) == "recipe"
    assert len({repr(config) for config in known.values()}) == len(known)


def test_feature_groups_are_names_and_do_not_overlap():
    groups = [
        *(ablation.LOSS_FEATURES, ablation.GRADIENT_FEATURES, ablation.COSINE_FEATURES),
        *(ablation.SIZE_FEATURES, ablation.VALIDATION_FEATURES),
    ]
    names = [name for group in groups for name in group]
    assert len(set(names)) == len(names)
    assert set(names) <= set(FEATURE_NAMES)


def test_summary_by_hand():
    scores = {"recipe": np.full((4, 3), -0.2), "other": np.repeat([[-0.1], [0.3]], 2, axis=0)}
    scores["other"] = np.repeat(scores["other"], 3, axis=1)
    first, second = ablation.summarise(
        scores, families=("a", "b"), generator=np.random.default_rng(0)
    )
    assert first.score.estimate == pytest.approx(-0.2)
    assert first.families == pytest.approx((-0.2, -0.2))
    assert second.families == pytest.approx((-0.1, 0.3))
    assert second.change.estimate == pytest.approx(0.3)
    assert second.change.low == pytest.approx(0.1)
    assert second.change.high == pytest.approx(0.5)
    text = ablation.to_markdown([first, second], families=("a", "b"))
    assert "| other | +0.100 [-0.100, +0.300] | +0.300 [+0.100, +0.500] | -0.100 | +0.300 |" in text


def test_a_hidden_feature_moves_nothing_and_a_done_variant_is_not_repeated(tmp_path, monkeypatch):
    tiny = replace(
        get_preset("smoke"),
        decisions=100,
        hidden_features=("progress", "cos_update"),
        exploration="state-dependent",
        reward="rank",
        family_weights=(2.0,),
    )
    first = ablation.run_variant(tiny, tmp_path / "run", seed=0)
    assert first.shape == (1, ablation.SCORE_SEEDS)
    policy = load_policy(tmp_path / "run" / "policy.safetensors")
    states = np.random.default_rng(0).normal(size=(5, len(FEATURE_NAMES)))
    moved = states.copy()
    moved[:, [FEATURE_NAMES.index(name) for name in tiny.hidden_features]] += 3
    assert (policy.act(moved) == policy.act(states)).all()
    assert not (policy.act(states + 1) == policy.act(states)).any()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(ablation, "train", refuse)
    assert (ablation.run_variant(tiny, tmp_path / "run", seed=0) == first).all()


def test_state_dependent_exploration_resumes_bit_for_bit(tmp_path):
    config = replace(
        get_preset("smoke"), decisions=600, exploration="state-dependent", log_std=-2.0
    )
    train(config, tmp_path / "whole", seed=3, progress=False, meter=False)

    class StopError(Exception):
        pass

    from pacesetter.agent.training import callbacks

    saved = callbacks.save_checkpoint
    count = 0

    def save_and_stop(*arguments: object) -> None:
        nonlocal count
        saved(*arguments)
        count += 1
        if count == 2:
            raise StopError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks, "save_checkpoint", save_and_stop)
        with pytest.raises(StopError):
            train(config, tmp_path / "halves", seed=3, progress=False, meter=False)
    train(config, tmp_path / "halves", seed=3, progress=False, resume=True, meter=False)
    whole, halves = (load_policy(tmp_path / n / "policy.safetensors") for n in ("whole", "halves"))
    for one, other in zip(whole.layers, halves.layers, strict=True):
        assert (one[0] == other[0]).all()
        assert (one[1] == other[1]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": "best"}, "reward must be one of z-score, difference, rank"),
        ({"exploration": "none"}, "independent or state-dependent"),
        ({"family_weights": (1.0, 2.0)}, "one weight for each of 1 families"),
        ({"family_weights": (-1.0,)}, "positive and finite"),
        ({"hidden_features": ("progres",)}, "progress"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(get_preset("smoke"), **changes)
