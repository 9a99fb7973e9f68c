"""The state of a run as it goes into a user's checkpoint, and states that older versions wrote."""

from __future__ import annotations

from typing import Any

from pacesetter.agent.plugin.run import ControlledRun

STATE_VERSION = 2


def job_state(run: ControlledRun, *, digest: str, planned: int) -> dict[str, Any]:
    """What a checkpoint needs of a run: tensors and plain Python types.

    Args:
        run: at any step.
        digest: of the policy.
        planned: updates that the run was to have when it began.
    """
    return {
        "version": STATE_VERSION,
        "policy": digest,
        "planned_steps": planned,
        "run": run.state_dict(),
    }


def load_job_state(
    run: ControlledRun, state: dict[str, Any], *, digest: str | None, planned: int
) -> None:
    """Puts a run where `job_state` was taken.

    Args:
        run: of the same optimizer and the same choices.
        state: of this version or an older one.
        digest: of the policy; None: any will do.
        planned: updates that the new run is to have; a run that was extended since may be resumed
            with its first or its latest end.

    Raises:
        ValueError: as for `LearnedScheduler.load_state_dict`.
    """
    version = state.get("version")
    if not isinstance(version, int) or not 1 <= version <= STATE_VERSION:
        raise ValueError(
            f"expected a state of version {STATE_VERSION} or older, but got {version!r}: "
            "upgrade pacesetter"
        )
    if digest is not None and state["policy"] != digest:
        raise ValueError(
            f"the state was taken with policy={state['policy']!r}, but this scheduler has "
            f"{digest!r}: load the policy that it was taken with, or give allow_other_policy=True"
        )
    if version == 1:
        state = _from_version_1(run, state)
    ends = {state["planned_steps"], state["run"]["total_steps"]}
    if planned not in ends:
        raise ValueError(
            f"the state was taken with total_steps={state['planned_steps']}, but this scheduler "
            f"has {planned}: make it with the same number, and call extend() afterwards"
        )
    run.load_state_dict(state["run"])


def _from_version_1(run: ControlledRun, state: dict[str, Any]) -> dict[str, Any]:
    """What version 1 lacked is as it is in a run that has just begun.

    It kept sums of the interval under way, from which single steps cannot be had: the interval's
    statistics are those of its remaining steps.
    """
    fresh = run.state_dict()
    pilot = {
        **fresh["pilot"],
        "codec": {**fresh["pilot"]["codec"], **state["codec"]},
        "encoder": state["encoder"],
    }
    old, new = state["monitor"], fresh["monitor"]
    signals = {n: old["signals"][n] for n in ("norm_mean", "norm_count")}
    monitor = {
        **new,
        "signals": {**new["signals"], **signals},
        "ratio": float(old["ratio"]),
        "threshold": float(old["threshold"]),
        "skipped": old["skipped"],
    }
    own = {
        **fresh,
        "total_steps": state["total_steps"],
        "steps": state["clock"]["step"],
        "clock": state["clock"],
        "groups": state["groups"],
        "pilot": pilot,
        "monitor": monitor,
        "snapshot": None,
    }
    return {**state, "planned_steps": state["total_steps"], "run": own}
