"""`LearnedScheduler`: a policy in charge of an ordinary PyTorch optimizer.

Statistics are taken at the same moments as in the trainer of the environments, and go through the
same decision core, so that the policy meets in a job what it met in meta-training.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from os import PathLike
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from pacesetter.agent.plugin.callbacks import ScheduleCallback
from pacesetter.agent.plugin.directions import check_supported
from pacesetter.agent.plugin.distributed import opened, refuse_plain_shards, sealed
from pacesetter.agent.plugin.history import History, Intervention, RecordedSchedule
from pacesetter.agent.plugin.hooks import RECIPE, attach, warn_of_others
from pacesetter.agent.plugin.options import (
    Options,
    check_same_job,
    check_state,
    describe,
    one_number,
    positive_integer,
    refuse_inference_mode,
)
from pacesetter.agent.plugin.run import ControlledRun
from pacesetter.agent.plugin.updates import overflowed, restore_found_inf
from pacesetter.agent.policy.explanation import Explanation, explain
from pacesetter.agent.policy.policy import DEFAULT_POLICY, Policy, load_policy
from pacesetter.envs.decision import CONTROLS

STATE_VERSION = 3
_MISSING: Any = object()


class LearnedScheduler:
    """Sets learning rate, momentum and gradient clipping of an optimizer while it trains.

    Call `step` with the loss after every ``optimizer.step()``, for `total_steps` updates::

        scheduler = LearnedScheduler(optimizer, total_steps=10_000)
        for batch in loader:
            loss = loss_fn(model, batch)
            loss.backward()
            optimizer.step()
            scheduler.step(loss)
            optimizer.zero_grad()

    The optimizer's own learning rate is the start that the schedule is relative to. Gradients are
    clipped within ``optimizer.step()``: do not clip them as well. An update whose gradients are
    not finite is skipped. When the loss diverges, the learning rate is cut at the next decision; if
    that does not help, the job goes back to its last good snapshot; if it goes on, the policy is
    left aside for the plain decay. Every such intervention is a record in `history` and a warning.
    With ``maximize=True``, give `step` and `observe_validation` what is maximised.

    Args:
        optimizer: torch's AdamW, Adam, SGD, RMSprop, NAdam, RAdam or a subclass of one.
        total_steps: updates of the whole run.
        policy: ``"default"`` for the shipped policy, a path to another, or a `Policy`.
        model: its buffers (running statistics) join the snapshots for rollback.
        warmup_steps: updates at the beginning in which nothing is changed, for a warm-up of the
            user's own; what it ends at is the start.
        control: which of ``"lr"``, ``"momentum"`` and ``"clip"`` to set; the rest is left alone.
        lr_bounds: least and greatest learning rate of any group that does not start at zero.
        guard: whether to answer divergence: False where the loss tells nothing of it, as in games
            between networks. Updates that are not finite are skipped all the same.
        rollback: whether to keep snapshots to go back to; None: where they take less than 256 MB.
            `rollback_bytes` tells how much.
        dry_run: propose and record, but change nothing.
        patience: intervals with a validation but no better one until `should_stop`; None: never.
        callbacks: told of every decision.
        process_group: of torch.distributed, the ranks that train one model; None: the default one,
            where there is one.

    Attributes:
        optimizer: the optimizer.
        policy: the policy in use.
        history: every decision so far.

    Raises:
        TypeError: the optimizer is not supported, or an argument is of the wrong type.
        ValueError: `total_steps` or another argument is out of its range, or the optimizer has a
            `LearnedScheduler` already.
        FileNotFoundError: there is no such policy file.
        PolicyFileError: the policy file cannot be used.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        *,
        policy: str | PathLike[str] | Policy = DEFAULT_POLICY,
        model: nn.Module | None = None,
        warmup_steps: int = 0,
        control: Collection[str] = CONTROLS,
        lr_bounds: tuple[float, float] | None = None,
        guard: bool = True,
        rollback: bool | None = None,
        dry_run: bool = False,
        patience: int | None = 10,
        callbacks: Sequence[ScheduleCallback] = (),
        process_group: Any = None,
    ) -> None:
        refuse_inference_mode("a LearnedScheduler is made")
        refuse_plain_shards(optimizer)
        check_supported(optimizer)
        self._options = Options(
            total_steps=total_steps,
            model=model,
            warmup_steps=warmup_steps,
            control=control,
            lr_bounds=lr_bounds,
            guard=guard,
            rollback=rollback,
            dry_run=dry_run,
            patience=patience,
            callbacks=callbacks,
            process_group=process_group,
        )
        self.optimizer = optimizer
        self.policy = policy if isinstance(policy, Policy) else load_policy(policy)
        self.history = History()
        self._detach = attach(optimizer, self)
        self._attached = True
        self._warned: set[str] = set()
        try:
            self._run = ControlledRun(optimizer, self.policy, self._options)
        except Exception:
            self.detach()
            raise
        self._run.write()

    @property
    def total_steps(self) -> int:
        """Updates of the whole run, warm-up and extensions included."""
        return self._run.total_steps

    def step(self, loss: Tensor | float = _MISSING) -> None:
        """Takes in the loss of the update just done, and decides when a decision is due.

        After `total_steps` calls there is one warning, and the last values hold. On a scheduler
        that was taken off with `detach` it does nothing.

        Args:
            loss: one number; a tensor may stay on its device. It need not be finite.

        Raises:
            TypeError: the loss is missing, or neither a tensor nor a number.
            ValueError: the loss is a tensor of more than one element.
        """
        if loss is _MISSING:
            raise TypeError(RECIPE)
        value = one_number(loss, "loss")
        if not self._attached:
            return
        run = self._run
        if run.steps >= run.total_steps:
            self._warn_once(
                f"LearnedScheduler.step() was called more often than total_steps="
                f"{run.total_steps}: the last values hold from here on; extend() sets a later end"
            )
            return
        if run.steps == 0 and not run.groups.latest and not overflowed(self.optimizer):
            self._warn_once(
                "LearnedScheduler.step() was called before optimizer.step(), or there was no "
                "gradient: call optimizer.step() first, or each loss counts for a wrong update"
            )
        decision = run.close_step(value)
        self._warn_of_others()
        if decision is not None:
            self.history.append(decision)
            self._tell(decision.interventions)
            for callback in self._options.callbacks:
                callback.on_decision(self.history[-1])
        elif run.steps == run.total_steps:
            at_the_end = run.finish()
            self.history.interventions_at_end += at_the_end
            self._tell(at_the_end)

    def observe_validation(self, valid_loss: Tensor | float, *, mode: str = "min") -> None:
        """Takes in a validation loss, for the next decision and `should_stop`.

        Args:
            valid_loss: one number, on the scale of the training loss; one that is not finite is
                ignored. A tensor on another device is fetched at once.
            mode: ``"max"`` for a measure of which more is better, such as accuracy.

        Raises:
            TypeError: it is neither a tensor nor a number.
            ValueError: it is a tensor of more than one element, or the mode is another.
        """
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', but got {mode!r}")
        self._run.observe_validation(float(one_number(valid_loss, "valid_loss")), mode=mode)

    @property
    def should_stop(self) -> bool:
        """Whether validation losses have been no better for `patience` intervals."""
        return self._run.should_stop

    def get_last_lr(self) -> list[float]:
        """Learning rate of each param group for the next update; proposed, in a dry run."""
        return [setting.lr for setting in self._run.settings]

    @property
    def last_clip_norm(self) -> float:
        """Clip threshold of the latest update; infinite if there was none. Waits for the device."""
        return self._run.monitor.threshold

    @property
    def skipped_steps(self) -> int:
        """Updates skipped so far for gradients that were not finite. Waits for the device."""
        return self._run.monitor.skipped

    @property
    def rollback_bytes(self) -> int:
        """Memory that the snapshot for rollback takes; 0 if there is none."""
        return self._run.rollback_bytes

    @property
    def last_epoch(self) -> int:
        """Not offered: torch's composed schedulers ask for it, and cannot drive this one."""
        raise TypeError(RECIPE)

    def extend(self, total_steps: int) -> None:
        """Sets a later end, without a jump of the learning rate.

        Args:
            total_steps: updates of the whole run, those done included.

        Raises:
            ValueError: it is no integer, or not beyond the present end.
        """
        total_steps = positive_integer(total_steps, "total_steps")
        if total_steps <= self.total_steps:
            raise ValueError(
                f"Expected total_steps beyond the present end, {self.total_steps}, "
                f"but got {total_steps}"
            )
        self._run.extend(total_steps)

    def detach(self, *, restore: bool = False) -> None:
        """Takes the hooks off; another scheduler may attach.

        Args:
            restore: whether to put learning rates and momenta back to where they started, so that
                another scheduler starts from there; False: the optimizer stays as it is.
        """
        if self._attached:
            self._detach()
        self._attached = False
        if restore:
            self._run.restore_starts()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_detach"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Attaches a copy to the optimizer that was copied with it."""
        vars(self).update(state)
        if self._attached:
            self._detach = attach(self.optimizer, self)

    def explain(self) -> Explanation:
        """Which features pushed the latest decision which way.

        Raises:
            RuntimeError: nothing was decided yet.
        """
        if not self.history:
            raise RuntimeError(
                "there is no decision to explain yet: the first interval is not over"
            )
        return explain(self.policy, self.history[-1].features)

    def export_schedule(self, path: str | PathLike[str] | None = None) -> RecordedSchedule:
        """The schedule so far, update by update, to replay without the agent.

        Args:
            path: of a CSV file to write it to; None: no file.
        """
        schedule = self._run.record()
        if path is not None:
            schedule.to_csv(path, base_lr=self._run.groups.lr_start)
        return schedule

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on exactly, at any step: tensors and plain Python types.

        The policy is not in it, only its digest. The snapshot for rollback is.
        """
        return {
            "version": STATE_VERSION,
            "policy": self.policy.digest,
            "planned_steps": self._options.total_steps,
            "optimizer": sealed(describe(self.optimizer)),
            "run": sealed(self._run.state_dict()),
            "history": sealed(self.history.state_dict()),
        }

    def load_state_dict(
        self, state_dict: dict[str, Any], *, allow_other_policy: bool = False
    ) -> None:
        """Goes on where `state_dict` was taken. The optimizer's own state is the user's to load.

        Args:
            state_dict: from this version of pacesetter.
            allow_other_policy: whether the state may be that of a run under another policy.

        Raises:
            TypeError: it is no dict.
            ValueError: it is no state of a scheduler, or it is of another policy, another
                `total_steps`, another version of pacesetter, another kind of optimizer or other
                parameters.
            RuntimeError: torch is in inference mode.
        """
        refuse_inference_mode("a state is loaded")
        state_dict = opened(state_dict)
        check_state(state_dict, ("version", "policy"))
        version, digest = state_dict["version"], self.policy.digest
        if version != STATE_VERSION:
            raise ValueError(
                f"expected a state of version {STATE_VERSION}, but got {version!r}: load it with "
                "the version of pacesetter that it was saved with"
            )
        if not allow_other_policy and state_dict["policy"] != digest:
            raise ValueError(
                f"the state was taken with policy={state_dict['policy']!r}, but this scheduler has "
                f"{digest!r}: load the policy that it was taken with, or give "
                "allow_other_policy=True"
            )
        check_state(state_dict, ("planned_steps", "run", "history"))
        run, like = state_dict["run"], self._run.state_dict(with_snapshot=False)
        check_state(run, like, whole="the state's run")
        for name in (n for n, part in like.items() if isinstance(part, dict)):
            check_state(run[name], like[name], whole=f"the state's {name}")
        planned, ours = state_dict["planned_steps"], self._options.total_steps
        # A run that was extended since may be resumed with its first or its latest end.
        if ours not in {planned, run["total_steps"]}:
            raise ValueError(
                f"the state was taken with total_steps={planned}, but this scheduler has {ours}: "
                "make it with the same number, and call extend() afterwards"
            )
        if "optimizer" in state_dict:  # 0.1.0 did not tell
            check_same_job(state_dict["optimizer"], self.optimizer)
        self._run.load_state_dict(run)
        self.history.load_state_dict(state_dict["history"])

    # The hooks call these three at every update; see `plugin.hooks.Listener`.

    def before_update(self) -> None:
        self._run.before_update()
        self._warn_of_others()

    def on_gradients(self) -> None:
        self._run.on_gradients()

    def after_update(self) -> None:
        restore_found_inf(self.optimizer)

    def _warn_of_others(self) -> None:
        foreign = self._run.take_foreign()
        if foreign and "foreign" not in self._warned:
            self._warned.add("foreign")
            warn_of_others(self.optimizer, foreign, stacklevel=4)

    def _tell(self, interventions: Sequence[Intervention]) -> None:
        for intervention in interventions:
            kind = intervention.kind
            # Overfitting is no fault. What is unfamiliar may come and go: it is said once.
            if kind == "overfitting" or (kind == "unfamiliar" and kind in self._warned):
                continue
            self._warned.add(kind)
            warnings.warn(f"LearnedScheduler: {intervention}", stacklevel=3)

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=3)
