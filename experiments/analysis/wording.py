"""A summary in words: labels, intervals, and the verdict, which claims no more than was found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pacesetter.experiments.analysis.findings import Finding, Summary
from pacesetter.experiments.analysis.statistics import Interval
from pacesetter.experiments.runs.records import Entry

MOST_NAMES = 6
"""Rivals that a sentence names; of more it gives the number."""
FEW = 5
"""With fewer tasks or seeds than this, intervals are too short, and readers are told so."""
MOST_STARTS = 2
"""Starts of the learning rate that are shown one by one; of more, the nearest to the reference."""
_CLAIMS: tuple[tuple[Finding, str], ...] = (
    ("better", "better than"),
    ("no clear difference", "not clearly different from"),
    ("worse", "worse than"),
)


def entry_label(entry: Entry, labels: Mapping[str, str], *, tuned: bool = False) -> str:
    """How tables call an arm from a start, with a budget.

    Args:
        entry: which.
        labels: by name of the arm; an arm without one goes by its name.
        tuned: whether the arm was run with other budgets too, so that even 1 is told.

    >>> entry_label(Entry("policy", 1e-3), {"policy": "the policy"})
    'the policy from 0.001'
    >>> entry_label(Entry("adamw-cosine", budget=20), {}, tuned=True)
    'adamw-cosine (20 trials)'
    """
    label = labels.get(entry.arm, entry.arm)
    if entry.start_lr is not None:
        label = f"{label} from {entry.start_lr:g}"
    elif tuned or entry.budget > 1:
        label = f"{label} ({entry.budget} trial{'s' * (entry.budget > 1)})"
    return label


def signed_interval(interval: Interval) -> str:
    """An interval in words.

    >>> signed_interval(Interval(-0.1, -0.2, 0.05))
    '-0.100 [-0.200, +0.050]'
    """
    return f"{interval.estimate:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def plain_interval(interval: Interval | None, *, digits: int = 2) -> str:
    """An interval of what is not a difference; a dash where there is none.

    >>> plain_interval(Interval(0.5, 0.25, 1.0)), plain_interval(None)
    ('0.50 [0.25, 1.00]', '–')
    """
    if interval is None:
        return "–"
    if not math.isfinite(interval.low):
        return f"{interval.estimate:.{digits}f}"
    low, high = f"{interval.low:.{digits}f}", f"{interval.high:.{digits}f}"
    return f"{interval.estimate:.{digits}f} [{low}, {high}]"


def capital(text: str) -> str:
    """The text with its first letter in upper case, and no other letter changed."""
    return text[:1].upper() + text[1:]


def agents(summary: Summary) -> list[Entry]:
    """The agent's entries that are spoken of: all starts, or of many the one in the field."""
    entries = list(dict.fromkeys(d.ours for d in summary.differences))
    several = {arm: sum(e.arm == arm for e in entries) > MOST_STARTS for arm in _arms(entries)}
    return [e for e in entries if not several[e.arm] or e in summary.field]


def _arms(entries: Sequence[Entry]) -> list[str]:
    return list(dict.fromkeys(e.arm for e in entries))


def verdict(summary: Summary) -> list[str]:
    """What can be said of the agent on the test split: a sentence for each start."""
    unit = "log ratio" if summary.relative else "log ratio, or difference over its spread"
    sentences = []
    for entry in agents(summary):
        score = summary.of(entry).scores["test"]
        what = f"test loss {_percent(score.estimate)} than" if summary.relative else "score against"
        found = _found(summary, entry)
        parts = [f"{word}: {_names(found[key])}" for key, word in _CLAIMS if key in found]
        sentences.append(
            f"{capital(summary.labels[entry])}: {what} {summary.labels[summary.reference]}'s "
            f"({unit} {signed_interval(score)}, mean over tasks); {'; '.join(parts)}."
        )
    return sentences


def few(summary: Summary) -> bool:
    """Whether so little was run that what is found are hints; one task may stand for itself."""
    return len(summary.seeds) < FEW or 1 < len(summary.tasks) < FEW


def headline(summary: Summary) -> str:
    """The verdict in one sentence: of the agent, or of the best arm where no agent was run."""
    text = _headline(summary)
    hint = "; with so few tasks or seeds these are hints" if few(summary) else ""
    return f"{text}{hint}."


def _headline(summary: Summary) -> str:
    rivals = [e for e in summary.entries if e.entry != summary.reference]
    base = summary.labels[summary.reference]
    if not rivals:
        return f"Only {base} was run: there is nothing to compare it with"
    spoken = [entry for entry in agents(summary) if entry in summary.field]
    if not spoken:
        best = min(rivals, key=lambda e: e.scores["test"].estimate)
        clear = sum(e.finding() == "better" for e in rivals)
        return (
            f"No agent was run; {_standing(summary, best.entry)}, and {clear} of {len(rivals)} "
            f"arms {'is' if clear == 1 else 'are'} clearly better than {base}"
        )
    found = _found(summary, spoken[0])
    total = sum(len(names) for names in found.values())
    parts = []
    for key, word in _CLAIMS:
        names = found.get(key, [])
        which = f" ({_names(names, most=3)})" if key == "worse" and names else ""
        parts.append(f"{word} {len(names)}{which}")
    return (
        f"{capital(_standing(summary, spoken[0]))}; of {total} rivals it is "
        f"{', '.join(parts[:-1])} and {parts[-1]}"
    )


def _standing(summary: Summary, entry: Entry) -> str:
    """An arm's test loss against the reference's, with the interval in the same unit."""
    found, base = summary.of(entry), summary.labels[summary.reference]
    score = found.scores["test"]
    if not summary.relative:
        text = f"{found.label} scores {signed_interval(score)} on test against {base}"
    else:
        ends = f"{_change(score.low)} to {_change(score.high)}"
        if not math.isfinite(score.low):
            ends = "one run: no interval"
        change = _percent(score.estimate)
        text = f"{found.label} has a test loss {change} than {base}'s ({ends})"
    normalised = found.normalised.get("test")
    if normalised is not None:
        text += f", a normalised score of {plain_interval(normalised)}"
    return text


def _found(summary: Summary, entry: Entry) -> dict[Finding, list[str]]:
    """Labels of an agent's rivals by what may be said, the strongest rivals first."""
    rows = [d for d in summary.differences if d.ours == entry]
    rows.sort(key=lambda d: summary.of(d.rival).scores["test"].estimate)
    found: dict[Finding, list[str]] = {}
    for row in rows:
        rival = summary.labels[row.rival]
        if entry.start_lr is not None:
            rival = rival.removesuffix(f" from {entry.start_lr:g}")
        found.setdefault(row.finding(), []).append(rival)
    return found


def _names(names: Sequence[str], *, most: int = MOST_NAMES) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _percent(log_ratio: float) -> str:
    change = _expm1(log_ratio)
    return f"{_digits(abs(change))} % {'lower' if change < 0 else 'higher'}"


def _change(log_ratio: float) -> str:
    change = _expm1(log_ratio)
    return f"{'-' if change < 0 else '+'}{_digits(abs(change))} %"


def _expm1(log_ratio: float) -> float:
    """In percent; infinite where it is too large for a number."""
    return 100 * math.expm1(log_ratio) if log_ratio < 700 else math.inf


def _digits(percent: float) -> str:
    return f"{percent:.1f}" if percent < 9.95 else f"{percent:.0f}"
