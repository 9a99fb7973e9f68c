"""`LearnedScheduler` for the Trainer of Lightning: one callback, nothing else to change."""

from __future__ import annotations

import math
import sys
import warnings
from typing import Any

from torch import Tensor

from pacesetter.agent.adapters.attachment import Attachment, Monitor, attach, controls
from pacesetter.agent.plugin.scheduler import LearnedScheduler
from pacesetter.inner_models.lookup import require

_NAMES = ("lightning.pytorch", "pytorch_lightning")


def _callback_classes() -> tuple[Any, ...]:
    """`Callback` under the name, or both names, that the program goes by; else what is there."""
    used = [sys.modules[name] for name in _NAMES if sys.modules.get(name) is not None]
    if used:
        return tuple(module.Callback for module in used)
    try:
        return (require(_NAMES[0], extra="lightning").Callback,)
    except ImportError:
        return (require(_NAMES[1], extra="lightning").Callback,)


class LearnedSchedulerCallback(*_callback_classes()):  # type: ignore[misc]
    """Lets a `LearnedScheduler` drive the optimizer of a Lightning Trainer.

    ::

        trainer = Trainer(max_epochs=10, callbacks=[LearnedSchedulerCallback()])

    It works with automatic optimization, and so with one optimizer, under ``lightning.pytorch``
    and under ``pytorch_lightning``. While it trains:

    - the loss is the one that ``training_step`` returns, averaged over the micro-batches of one
      update; an update without any, because ``training_step`` returned None, counts as skipped;
    - learning-rate schedulers from ``configure_optimizers`` are taken away, with one warning;
    - the validation loss is read from ``trainer.callback_metrics`` after every validation: log it
      there, ``self.log("val_loss", loss)``; of several loaders, that of the first;
    - learning rate, momentum and clip threshold go to the Trainer's loggers at every decision;
    - the scheduler's state is in every checkpoint, so that ``fit(ckpt_path=...)`` goes on exactly.

    What is not controlled (`control`, `dry_run`) stays with Lightning. With ``warmup_steps=n`` the
    schedulers of ``configure_optimizers`` work through the first n updates.

    Args:
        monitor: name of the validation loss in ``trainer.callback_metrics``.
        mode: ``"max"`` where more of it is better; None: as the name has it, such as an accuracy.
        early_stopping: whether to end training when the scheduler's `should_stop` says so.
        total_steps: updates of the whole run; None: what Lightning works out from the data.
        **options: further keyword arguments of `LearnedScheduler`.

    Attributes:
        scheduler: the `LearnedScheduler` once training has begun, and after it has ended.
    """

    def __init__(
        self,
        *,
        monitor: str = "val_loss",
        mode: str | None = None,
        early_stopping: bool = False,
        total_steps: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.monitor = monitor
        self._monitor = Monitor(monitor, mode, required=early_stopping)
        self.mode = self._monitor.mode
        self.early_stopping = early_stopping
        self.total_steps = total_steps
        self.options = options
        self.scheduler: LearnedScheduler | None = None
        self._attachment: Attachment | None = None
        self._saved: dict[str, Any] | None = None
        self._active = False
        self._losses: list[Tensor] = []
        self._loss: Tensor | float | None = None  # of the latest update that had one
        self._waiting = 0  # updates that the scheduler has not been told of
        self._step = 0
        self._decisions = 0

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuses jobs that it cannot serve, before anything is done.

        Raises:
            ValueError: manual optimization, or Lightning's gradient clipping.
        """
        if not pl_module.automatic_optimization:
            raise ValueError(
                "LearnedSchedulerCallback needs automatic optimization, but "
                f"{type(pl_module).__name__} optimizes by hand: use LearnedScheduler itself in "
                "its training_step"
            )
        if trainer.gradient_clip_val and controls(self.options, "clip"):
            raise ValueError(
                f"gradient_clip_val={trainer.gradient_clip_val!r} would clip what LearnedScheduler "
                "clips: take it away, or keep it and pass control=('lr', 'momentum')"
            )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._release()
        self._step = trainer.global_step
        self._attachment = attach(
            trainer.optimizers[0],
            self._horizon(trainer),
            model=pl_module,
            options=self.options,
            step=self._step,
            saved=self._saved,
        )
        self._saved, self._loss, self._waiting = None, None, 0
        self._active = True
        self._monitor.begin()
        self.scheduler = self._attachment.scheduler
        self._decisions = len(self.scheduler.history)

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes other schedulers away, once the user's own warm-up is over."""
        over = self._step >= self.options.get("warmup_steps", 0)
        found = trainer.strategy.lr_scheduler_configs
        if not (found and over and controls(self.options, "lr")):
            return
        if not self.options.get("warmup_steps", 0):
            names = ", ".join(type(config.scheduler).__name__ for config in found)
            where, instead = "configure_optimizers", "return the optimizer alone"
            if names == "SWALR":
                where = "StochasticWeightAveraging"
                instead = (
                    "average with WeightAveraging, or keep it with control=('momentum', 'clip')"
                )
            elif self._loss is not None:
                where, instead = "another callback", "take that callback away"
            warnings.warn(
                f"LearnedScheduler sets the learning rate: {names} from {where} is not used. To be "
                f"rid of this warning, {instead}",
                stacklevel=2,
            )
        trainer.strategy.lr_scheduler_configs = []

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        attachment = self._attachment
        if attachment is None or not self._active:
            return
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if loss is not None:
            # Lightning has divided it by the number of micro-batches.
            self._losses.append(loss.detach() * trainer.accumulate_grad_batches)
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        self._waiting += 1
        if self._losses:
            self._loss = sum(self._losses) / len(self._losses)
            self._losses.clear()
        while self._loss is not None and self._waiting:
            # One without a loss repeats the latest, which changes no statistics.
            attachment.scheduler.step(self._loss)
            self._waiting -= 1
        if len(attachment.scheduler.history) > self._decisions:
            self._decisions = len(attachment.scheduler.history)
            for logger in trainer.loggers:
                logger.log_metrics(attachment.readings(), step=self._step)
        if self.early_stopping and attachment.scheduler.should_stop:
            trainer.should_stop = True

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Hands over the validation loss.

        Raises:
            ValueError: the loss that was named, or that early stopping waits for, is not logged.
        """
        if self._attachment is None or not self._active or trainer.sanity_checking:
            return
        self._monitor.observe(trainer.callback_metrics, self._attachment.scheduler)
        self._monitor.check()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._release()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._release()

    def state_dict(self) -> dict[str, Any]:
        if self._attachment is None:
            return {} if self._saved is None else {"attachment": self._saved}
        # Also after training has ended: trainer.save_checkpoint() comes then.
        return {"attachment": self._attachment.state_dict(self._step)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the state of a checkpoint until the optimizer is there."""
        self._saved = state_dict.get("attachment")

    def _horizon(self, trainer: Any) -> int:
        if self.total_steps is not None:
            return self.total_steps
        estimate = trainer.estimated_stepping_batches
        if not 0 < estimate < math.inf:
            raise ValueError(
                "LearnedScheduler has to know how many updates the run has, but Lightning cannot "
                f"tell (estimated_stepping_batches is {estimate}): set max_steps of the Trainer, "
                "or LearnedSchedulerCallback(total_steps=...)"
            )
        return int(estimate)

    def _release(self) -> None:
        self._active = False
        self._losses.clear()
        if self._attachment is not None:
            self._attachment.scheduler.detach()
