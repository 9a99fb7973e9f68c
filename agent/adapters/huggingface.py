"""`LearnedScheduler` for the Trainer of transformers: one callback, nothing else to change."""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pacesetter.agent.adapters.attachment import Attachment, Monitor, attach, controls, unwrapped
from pacesetter.agent.plugin.scheduler import LearnedScheduler
from pacesetter.inner_models.lookup import require

transformers = require("transformers", extra="huggingface")
logger = logging.getLogger(__name__)

STATE_KEY = "pacesetter"
"""Entry of the optimizer's first param group in a checkpoint."""


class LearnedSchedulerCallback(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
    """Lets a `LearnedScheduler` drive the optimizer of a Hugging Face Trainer.

    ::

        trainer = Trainer(model, args, train_dataset=data, callbacks=[LearnedSchedulerCallback()])

    While it trains:

    - Trainer's own learning-rate scheduler (``lr_scheduler_type``, with its warm-up) goes on
      counting but no longer sets anything; ``learning_rate`` in the logs is the one in force. The
      optimizer's learning rate before any warm-up (``learning_rate``) is the start.
    - ``max_grad_norm``, 1.0 by default, is set to 0: the scheduler clips.
    - The loss is the one that the model returns, averaged as Trainer averages it over the
      micro-batches of one update. Where the model returns none, because Trainer computes it
      (``compute_loss_func``, label smoothing, a ``compute_loss`` of a subclass), or where it
      returns another than is trained on, call `read_loss_from` once.
    - ``eval_loss`` of every evaluation goes to the scheduler; of several evaluation sets, that of
      the first, or of the one that `monitor` names.
    - Momentum and clip threshold join the entries of ``state.log_history``, and the logs of the
      callbacks that come after this one.
    - The scheduler's state is in ``optimizer.pt`` of every checkpoint, so that
      ``resume_from_checkpoint`` goes on exactly, from whatever folder. Under FSDP2 it is not
      saved: there a resumed run begins a new schedule over the updates that remain.

    Whatever ends ``train()``, or takes the callback away, ends all of this: Trainer's scheduler and
    ``max_grad_norm`` are put back, and learning rate and momentum are what they are without us.

    What is not controlled (`control`, `dry_run`) stays with Trainer. With ``warmup_steps=n`` its
    scheduler and its clipping work through the first n updates.

    Args:
        early_stopping: whether to end training when the scheduler's `should_stop` says so; needs
            an ``eval_strategy``.
        monitor: name of the validation loss among the metrics of an evaluation; ``eval_`` may be
            left out, as in ``metric_for_best_model``.
        mode: ``"max"`` where more of it is better; None: as the name has it, such as an accuracy.
        **options: keyword arguments of `LearnedScheduler`.

    Attributes:
        scheduler: the `LearnedScheduler` once training has begun, and after it has ended.
    """

    def __init__(
        self,
        *,
        early_stopping: bool = False,
        monitor: str = "eval_loss",
        mode: str | None = None,
        **options: Any,
    ) -> None:
        self.early_stopping = early_stopping
        self.monitor = monitor if monitor.startswith("eval_") else f"eval_{monitor}"
        self._monitor = Monitor(self.monitor, mode, required=early_stopping)
        self.mode = self._monitor.mode
        self.options = options
        self.scheduler: LearnedScheduler | None = None
        self._attachment: Attachment | None = None
        self._losses: list[tuple[Tensor, bool]] = []  # of the micro-batches; whether to be summed
        self._share_factor = 1
        self._trainer_tells_loss = False
        self._step = 0
        self._may_be_saved = False
        self._hooks: list[Any] = []
        self._overruled: tuple[Any, type] | None = None
        self._max_grad_norm: tuple[Any, float] | None = None

    def read_loss_from(self, trainer: Any) -> None:
        """Takes the losses that Trainer trains on, instead of those that the model returns.

        Call this once, before ``trainer.train()``: it wraps the Trainer's `training_step`.
        """
        inner = trainer.training_step

        def training_step(*args: Any, **kwargs: Any) -> Any:
            loss = inner(*args, **kwargs)
            if self._attachment is not None:
                self._losses.append((loss.detach(), True))
            return loss

        trainer.training_step = training_step
        self._trainer_tells_loss = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.early_stopping and args.eval_strategy == "no":
            raise ValueError(
                "early_stopping=True needs validation losses, but eval_strategy is 'no': set "
                "eval_strategy and an eval_dataset"
            )
        # Trainer begins anew where it looks for a batch size that fits.
        self._release(kwargs["lr_scheduler"])
        model: nn.Module = kwargs["model"]
        optimizer = unwrapped(kwargs["optimizer"])
        saved = optimizer.param_groups[0].pop(STATE_KEY, None)
        self._step = state.global_step
        self._attachment = attach(
            optimizer,
            state.max_steps,
            model=model,
            options=self.options,
            step=self._step,
            saved=saved,
        )
        self.scheduler = self._attachment.scheduler
        self._monitor.begin()
        averages = getattr(args, "average_tokens_across_devices", False)
        self._share_factor = args.world_size if averages else 1
        if not self._trainer_tells_loss:
            watch = torch.compiler.disable(self._watch)
            self._hooks.append(model.register_forward_hook(watch, with_kwargs=True))
        if not args.fsdp:
            self._hooks.append(optimizer.register_state_dict_post_hook(self._add_state))
        self._take_over(args, kwargs["lr_scheduler"])

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drops losses of an update that was never done; ends the user's own warm-up."""
        self._monitor.check()
        self._may_be_saved = False
        self._losses.clear()
        self._take_over(args, kwargs["lr_scheduler"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        attachment = self._attachment
        if attachment is None:
            return control
        attachment.scheduler.step(self._loss())
        self._step = state.global_step
        self._may_be_saved = True
        if self.early_stopping and attachment.scheduler.should_stop:
            control.should_training_stop = True
        return control

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any
    ) -> None:
        if self._attachment is not None:
            self._monitor.observe(metrics, self._attachment.scheduler)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any
    ) -> None:
        """Adds momentum and clip threshold to the logs of training."""
        if self._attachment is None or "loss" not in logs:
            return
        readings = self._attachment.readings()
        readings.pop("pacesetter/lr", None)  # Trainer logs it as learning_rate
        logs.update(readings)
        if state.log_history:
            state.log_history[-1].update(readings)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._release()
        self._monitor.check()

    def _take_over(self, args: Any, lr_scheduler: Any) -> None:
        """Stops Trainer's scheduler and its clipping, once the user's own warm-up is over."""
        if self._step < self.options.get("warmup_steps", 0):
            return
        if self._overruled is None and controls(self.options, "lr"):
            self._overruled = (lr_scheduler, type(lr_scheduler))
            if isinstance(lr_scheduler, LRScheduler):
                # Not an attribute: state_dict() of a scheduler saves whatever it finds in there.
                lr_scheduler.__class__ = _counting_only(type(lr_scheduler))
        if self._max_grad_norm is None and controls(self.options, "clip"):
            self._max_grad_norm = (args, args.max_grad_norm)
            if args.max_grad_norm:
                logger.info("max_grad_norm=%s gives way to LearnedScheduler", args.max_grad_norm)
            args.max_grad_norm = 0.0

    def _release(self, successor: Any = None) -> None:
        """Puts everything back; `successor` is the scheduler that Trainer has made since."""
        for hook in self._hooks:
            hook.remove()
        if self._attachment is not None:
            self._attachment.scheduler.detach(restore=True)
        if self._overruled is not None:
            self._overruled[0].__class__ = self._overruled[1]
            _catch_up(successor or self._overruled[0])
        if self._max_grad_norm is not None:
            self._max_grad_norm[0].max_grad_norm = self._max_grad_norm[1]
        self._hooks, self._losses = [], []
        self._attachment = self._overruled = self._max_grad_norm = None

    def _watch(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook: keeps the loss of a micro-batch."""
        if not (module.training and torch.is_grad_enabled()):
            return
        loss = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
        if loss is None and isinstance(output, tuple) and output:
            loss = output[0]
        if isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad:
            # Told how many items the whole update has, a model returns its share of the update's
            # loss; then the shares add up. Otherwise it returns a mean, and Trainer averages.
            shared = kwargs.get("num_items_in_batch") is not None
            loss = loss.detach()
            self._losses.append((loss * self._share_factor if shared else loss, shared))

    def _loss(self) -> Tensor:
        if not self._losses:
            raise ValueError(
                "the model returned no loss in training, so LearnedSchedulerCallback cannot read "
                "it: before trainer.train(), call read_loss_from(trainer) of the callback"
            )
        first = self._losses[0][0]
        total = torch.stack([loss.to(first.device).reshape(()) for loss, _ in self._losses]).sum()
        if not self._losses[0][1]:
            total = total / len(self._losses)
        self._losses.clear()
        return total

    def _add_state(self, optimizer: Any, state_dict: dict[str, Any]) -> None:
        """State-dict hook: callbacks do not learn from where Trainer resumes, optimizers do."""
        # Trainer saves between updates; snapshots within an update are the scheduler's own.
        if self._attachment is not None and self._may_be_saved:
            state_dict["param_groups"][0][STATE_KEY] = self._attachment.state_dict(self._step)


def _counting_only(kind: type) -> type:
    """A class of schedulers that count steps, for whoever resumes without us, and set nothing."""

    class CountingOnly(kind):  # type: ignore[misc]
        def step(self, *args: Any, **kwargs: Any) -> None:
            self.last_epoch += 1

        def get_last_lr(self) -> list[Any]:
            return [group["lr"] for group in self.optimizer.param_groups]

    CountingOnly.__name__ = kind.__name__
    return CountingOnly


def _catch_up(scheduler: Any) -> None:
    """Sets the learning rates that a scheduler which has only counted would have set by now."""
    if isinstance(scheduler, LRScheduler) and not isinstance(scheduler, ReduceLROnPlateau):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the argument
            scheduler.step(scheduler.last_epoch)


def _releasing(method: Callable[..., Any], *, at_its_end: bool) -> Callable[..., Any]:
    """A method of Trainer that ends or removes callbacks: no event tells of errors and removal."""

    @functools.wraps(method)
    def wrapped(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        callbacks = trainer.callback_handler.callbacks
        ours = [c for c in callbacks if isinstance(c, LearnedSchedulerCallback)]
        try:
            return method(trainer, *args, **kwargs)
        finally:
            for callback in ours:
                if at_its_end or callback not in callbacks:
                    callback._release()

    return wrapped


for _name in ("train", "pop_callback", "remove_callback"):
    _method = _releasing(getattr(transformers.Trainer, _name), at_its_end=_name == "train")
    setattr(transformers.Trainer, _name, _method)
