"""The generated parts of the page about a policy, as Markdown, made from numbers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pacesetter.agent.policy.policy import Policy
from pacesetter.envs.features import FEATURES, Feature
from pacesetter.experiments.analysis.statistics import bootstrap_interval
from pacesetter.experiments.portrait_figures import ACTION_LABELS
from pacesetter.experiments.portrait_page import FIGURES
from pacesetter.experiments.portrait_responses import Response
from pacesetter.experiments.portrait_runs import (
    LRS,
    SHOWN_FACTORS,
    Rate,
    Side,
    TaskRuns,
    by_family,
    losses_by_start,
)

FloatArray = NDArray[np.float64]

CORRECTIONS: tuple[tuple[str, Rate, Side], ...] = (
    ("peak, start too low", "peak", "low"),
    ("mean, start too low", "mean", "low"),
    ("mean, start too high", "mean", "high"),
)
"""Slopes that are told: name, which rate, and on which side."""


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """What is measured of a policy's file.

    Attributes:
        num_bytes: its size.
        load_ms: median time to load it, milliseconds.
        num_loads: loads behind the median.
    """

    num_bytes: int
    load_ms: float
    num_loads: int

    def __str__(self) -> str:
        return (
            f"{self.num_bytes / 1000:.1f} kB; loaded in {self.load_ms:.2f} ms "
            f"(median of {self.num_loads} loads in one process)"
        )


def facts_block(
    policy: Policy, facts: FileFacts, *, command: str, runs: Sequence[TaskRuns], num_states: int
) -> str:
    """What was looked at, and how."""
    info = policy.info
    weights = sum(w.size + b.size for w, b in policy.layers)
    diverged = sum(int(r.diverged.sum()) for r in runs)
    count = sum(r.diverged.size for r in runs)
    sizes = [policy.layers[0][0].shape[1], *(len(bias) for _, bias in policy.layers)]
    made = f"{info.decisions:,} decisions on {len(info.families)} task families"
    return f"""\
| | |
|:--|:--|
| policy | SHA-256 `{policy.digest[:16]}…`, {made} |
| network | {" – ".join(map(str, sizes))}, {policy.activation}, {weights:,} numbers |
| file | {facts} |
| looked at | {num_states:,} decisions in runs of the meta-train families, as in meta-training: \
random starts, half of the runs with exploration noise; {count} runs of {len(runs)} tasks of \
{len(by_family(runs))} families, of which {diverged} diverged |
| made by | `{command}` |

No held-out family was run. The meter of strange jobs is not asked in these runs; the guard is."""


def schedules_block(runs: Sequence[TaskRuns]) -> str:
    """The figures of schedules, and what they cost."""
    families = by_family(runs)
    starts = ", ".join(f"{f:g}" for f in SHOWN_FACTORS)
    rows = [["family", "tasks", "best cosine", *(f"from {f:g}×" for f in SHOWN_FACTORS)]]
    for family, mine in {**families, "all": list(runs)}.items():
        best = sorted(r.best_lr for r in mine)
        losses = losses_by_start(mine)
        rows.append(
            [
                f"**{family}**" if family == "all" else family,
                str(len(mine)),
                f"{best[0]:g}" if best[0] == best[-1] else f"{best[0]:g} to {best[-1]:g}",
                *(f"{losses[f]:+.2f}" if f in losses else "–" for f in SHOWN_FACTORS),
            ]
        )
    return f"""\
Runs from starts that are {starts} times the learning rate of the task's best AdamW cosine (of a \
grid of half decades from {LRS[0]:g} to {LRS[-1]:g}, chosen in hindsight on the same seeds). Lines \
are means over tasks and seeds (of logs, but for momentum), bands are quartiles. The policy is not \
told what its start is, and sees validation losses only on those meta-train tasks that were drawn \
with them. The learning rate is drawn over the best cosine's, so that tasks can be laid over each \
other.

{_picture("policy-learning-rate", "Learning rate over progress, by family and start")}

Learning rate over that of the best cosine.

{_picture("policy-momentum", "Momentum over progress, by family and start")}

Momentum (`betas[0]`); all runs start at 0.9.

{_picture("policy-clipping", "Clip ratio over progress, by family and start")}

Clip threshold over the running mean of the gradient norm; the less, the more is clipped.

What comes of it: mean log ratio of the final outer-valid loss to the best cosine's, by start over \
its rate; below zero is better than a cosine that was chosen in hindsight.

{_table(rows)}"""


def probe_block(runs: Sequence[TaskRuns], *, generator: np.random.Generator) -> str:
    """The probe of adaptivity: its figure, what slopes mean, and the slopes by family."""
    factors = runs[0].factors
    rows = [["family", *(name for name, _, _ in CORRECTIONS)]]
    for family, mine in by_family(runs).items():
        slopes = [
            np.mean([r.correction(rate, side) for r in mine]) for _, rate, side in CORRECTIONS
        ]
        rows.append([family, *(f"{slope:+.2f}" for slope in slopes)])
    total = ["**all**"]
    for _, rate, side in CORRECTIONS:
        values = np.array([[r.correction(rate, side)] for r in runs])
        known = bool(np.isfinite(values).all())
        found = bootstrap_interval(values, generator=generator, over_tasks=True) if known else None
        total.append(
            "–" if found is None else f"{found.estimate:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
        )
    rows.append(total)
    return f"""\
The same runs, from starts of {factors[0]:g} to {factors[-1]:g} times the best cosine's rate.

{_picture("policy-starts", "Rates over the best cosine's, against the start")}

Slope of log(rate / start) on log(start / best cosine's rate): -1 means that the rate is the same \
from every start, 0 that every start is multiplied by the same factor; below -1 is more than what \
was wrong. In brackets: 95 % bootstrap intervals over tasks. The peak of a run cannot lie far \
below its start, so where that is too high, the geometric mean over the run tells what followed.

{_table(rows)}"""


def importance_block(
    responses: Sequence[Response], kinds: Mapping[str, FloatArray], *, policy_size: FloatArray
) -> str:
    """The tables of what matters.

    Args:
        responses: of all features.
        kinds: importance by kind of feature, (3,) each.
        policy_size: (3,), mean absolute action over the states.
    """
    by_kind = sorted(kinds.items(), key=lambda item: -float(item[1].sum()))
    kind_rows = [["what is shuffled", *ACTION_LABELS]]
    kind_rows += [[kind, *(f"{value:.2f}" for value in found)] for kind, found in by_kind]
    rows = [["feature", "meaning", *ACTION_LABELS]]
    rows += [
        [
            f"`{r.feature.name}`",
            _meaning(r.feature),
            *(f"{i:.2f} ({e:+.2f})" for i, e in zip(r.importance, r.effect, strict=True)),
        ]
        for r in ranked(responses)
    ]
    sizes = ", ".join(
        f"{size:.2f} ({name})" for name, size in zip(ACTION_LABELS, policy_size, strict=True)
    )
    return f"""\
Mean absolute change of each action when a feature is shuffled over the states that runs met, in \
units of the largest change per decision. The actions themselves have mean absolute values of \
{sizes}. Features that tell of the same thing are shuffled together first: alone, each may look \
small because the others stand in for it.

{_table(kind_rows)}

One by one, the strongest first. In brackets: what the feature does to the mean action as it goes \
from the low end to the high end of the values met (2nd to 98th percentile); positive raises what \
the column names, so a positive number under "1 − momentum" lowers momentum.

{_table(rows, left=2)}"""


def responses_block(shown: int) -> str:
    """The figures of responses.

    Args:
        shown: how many features each of the first three has.
    """
    parts = [
        f"""\
Partial dependence: a feature is set to a value in every state that was met, the others stay as \
they were. Lines are mean actions, bands are the middle half of the states; ticks at the bottom \
are the deciles of what runs met. Actions are changes per decision in units of the largest; zero \
carries on. The {shown} features that matter most to each action:"""
    ]
    for stem, label in zip(RESPONSE_STEMS, ACTION_LABELS, strict=True):
        parts.append(f"**{label[:1].upper()}{label[1:]}**")
        parts.append(_picture(stem, f"Changes of {label} over the features that matter most"))
    parts.append("**All actions over all features that varied** (means)")
    parts.append(_picture(ALL_RESPONSES_STEM, "Mean actions over every feature"))
    return "\n\n".join(parts)


RESPONSE_STEMS = ("policy-response-lr", "policy-response-momentum", "policy-response-clip")
"""Files of the responses of each action."""
ALL_RESPONSES_STEM = "policy-response-all"


def ranked(responses: Sequence[Response], action: int | None = None) -> list[Response]:
    """Responses by importance to an action, or to all together, the strongest first."""
    return sorted(
        responses,
        key=lambda r: -float(r.importance.sum() if action is None else r.importance[action]),
    )


def _meaning(feature: Feature) -> str:
    """What a feature is, where `FEATURES` refers to the one before it too."""
    before = FEATURES[FEATURES.index(feature) - 1]
    return feature.meaning.replace("the same", before.meaning)


def _picture(stem: str, text: str) -> str:
    return f"![{text}]({FIGURES}/{stem}.svg)"


def _table(rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    rule = [":--"] * left + ["--:"] * (len(rows[0]) - left)
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]])
