"""Faults that users of such tools have reported: Trainers, validation measures, checkpoints."""

import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from jobs import Job, always, reactive
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.nn.functional import mse_loss
from torch.optim.lr_scheduler import LambdaLR, StepLR

from pacesetter.agent.plugin.scheduler import LearnedScheduler

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import pytorch_lightning as pl
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from pacesetter.agent.adapters import huggingface, lightning

pytestmark = [
    pytest.mark.filterwarnings("ignore:LearnedScheduler. lr_cut at"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(lightning|pytorch_lightning|torch).*"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*(many workers|_step` returned|You defined a|unavailable)"),
]
INPUTS = torch.randn(48, 3, generator=torch.Generator().manual_seed(0))
ROWS = [{"x": x, "labels": x.sin().sum(0, keepdim=True)} for x in INPUTS]
SETS = {"dogs": ROWS[:8], "cats": ROWS[8:24]}


class Net(nn.Linear):
    def forward(self, x, labels):
        output = super().forward(x)
        return {"loss": mse_loss(output, labels), "logits": output}


class Spy(TrainerCallback):
    """Notes what every update is done with; after one of them it does something."""

    def __init__(self, at=None, act=None):
        self.at, self.act, self.seen = at, act, []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        group = optimizer.param_groups[0]
        self.seen.append((group["lr"], group["betas"][0], args.max_grad_norm))

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.at:
            self.act()


def trainer_for(tmp_path, *callbacks, evaluation=ROWS[40:], **settings):
    usual = {"output_dir": str(tmp_path), "use_cpu": True, "disable_tqdm": True, "report_to": []}
    usual |= {"max_steps": 20, "learning_rate": 1e-2, "warmup_steps": 5, "save_strategy": "no"}
    args = TrainingArguments(**{**usual, "dataloader_pin_memory": False, **settings})
    data = {"train_dataset": ROWS, "eval_dataset": evaluation}
    return Trainer(Net(3, 1), args, **data, callbacks=list(callbacks))


def ours(**options):
    return huggingface.LearnedSchedulerCallback(policy=always(0.5, 0.5, 0.5), **options)


@pytest.fixture(scope="module")
def without_us(tmp_path_factory):
    spy = Spy()
    trainer_for(tmp_path_factory.mktemp("plain"), spy).train()
    return spy.seen


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_trainer_that_ends_in_an_exception_is_as_without_us(tmp_path, without_us, error):
    def act():
        raise error

    callback, spy = ours(), Spy(12, act)
    trainer = trainer_for(tmp_path, spy)
    trainer.add_callback(callback)
    with pytest.raises(error):
        trainer.train()
    assert spy.seen[-1] != without_us[11]
    assert trainer.args.max_grad_norm == 1.0
    assert type(trainer.lr_scheduler) is LambdaLR
    assert not trainer.model._forward_hooks
    group = trainer.optimizer.param_groups[0]
    assert (group["lr"], group["betas"]) == (pytest.approx(without_us[12][0]), (0.9, 0.999))
    trainer.remove_callback(callback)
    spy.at, spy.seen = None, []
    trainer.train()
    assert spy.seen == without_us


@pytest.mark.parametrize("how", ["remove_callback", "pop_callback"])
def test_trainer_goes_on_without_a_callback_that_is_taken_away(tmp_path, without_us, how):
    spy = Spy(9, lambda: getattr(trainer, how)(huggingface.LearnedSchedulerCallback))
    trainer = trainer_for(tmp_path, spy, ours())
    trainer.train()
    assert spy.seen[8] != without_us[8]
    assert spy.seen[9:] == without_us[9:]


def test_trainer_trains_twice_with_one_callback_and_set_after_set(tmp_path):
    for monitor, used in (("eval_loss", "eval_dogs_loss"), ("cats_loss", "eval_cats_loss")):
        spy, callback = Spy(), ours(monitor=monitor)
        evaluation = {"evaluation": SETS, "eval_strategy": "steps", "eval_steps": 1}
        trainer = trainer_for(tmp_path, callback, spy, **evaluation)
        trainer.train()
        logged = {entry.get(used) for entry in trainer.state.log_history}
        seen = {d.valid_loss for d in callback.scheduler.history if d.valid_loss is not None}
        assert len(seen) > 5
        assert seen <= logged
        trainer.train()
        assert spy.seen[0] == spy.seen[20]


@pytest.mark.parametrize("evaluation", [ROWS[40:], SETS])
def test_trainer_with_a_misspelt_monitor(tmp_path, evaluation):
    settings = {"evaluation": evaluation, "eval_strategy": "steps", "eval_steps": 5}
    callback = ours(monitor="validation_loss", early_stopping=evaluation is SETS)
    for steps in (20, 5):  # an update comes after the first validation, or none
        with pytest.raises(ValueError, match=r"'eval_validation_loss', but .*'eval_(cats_)?loss'"):
            trainer_for(tmp_path, callback, max_steps=steps, **settings).train()


def test_monitors_of_which_more_is_better():
    better = ("val_acc", "BinaryAccuracy", "f1", "val/auroc", "top5", "mAP", "eval_rouge1")
    for name in better:
        with pytest.warns(UserWarning, match="more is taken to be better"):
            assert lightning.LearnedSchedulerCallback(monitor=name).mode == "max"
    for name in ("dice_loss", "map_error", "perplexity", "val_loss", "traccer", "wer"):
        assert lightning.LearnedSchedulerCallback(monitor=name).mode == "min"
    assert ours(monitor="f1", mode="min").mode == "min"
    with pytest.raises(ValueError, match="mode must be 'min' or 'max', but got 'up'"):
        ours(mode="up")


class Module(pl.LightningModule):
    """Leaves out some batches; logs an accuracy that falls."""

    def __init__(self, left_out=()):
        super().__init__()
        self.net, self.left_out, self.validations = Net(3, 1), left_out, 0

    def training_step(self, batch, batch_idx):
        return None if batch_idx in self.left_out else self.net(**batch)["loss"]

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.validations += 1
        self.log_dict({"val_loss": 1.0 + dataloader_idx, "val_acc": 1 / self.validations})

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def fit(tmp_path, callback, module=None, *, others=(), loaders=0, **settings):
    batches = torch.utils.data.DataLoader(ROWS, batch_size=4)
    usual = {"default_root_dir": tmp_path, "accelerator": "cpu", "max_epochs": 4, "logger": False}
    usual |= {f"enable_{n}": False for n in ("checkpointing", "progress_bar", "model_summary")}
    trainer = pl.Trainer(**usual, callbacks=[callback, *others], **settings)
    trainer.fit(module or Module(), batches, [batches] * loaders or None)
    return trainer


@pytest.mark.parametrize(
    ("left_out", "accumulate", "skipped"),
    [((0, 1, 11), 1, 12), ((0, 1, 2, 7), 2, 4), (range(6), 3, 8)],
)
def test_lightning_counts_batches_left_out_as_skipped(tmp_path, left_out, accumulate, skipped):
    callback = lightning.LearnedSchedulerCallback(policy=reactive(num_intervals=6))
    trainer = fit(tmp_path, callback, Module(left_out), accumulate_grad_batches=accumulate)
    assert callback.scheduler._run.steps == trainer.global_step == 48 // accumulate
    assert len(callback.scheduler.history) == 5
    assert callback.scheduler.skipped_steps == skipped


def test_lightning_with_several_loaders_and_measures(tmp_path):
    for monitor, index in (("val_loss", 0), ("val_loss/dataloader_idx_1", 1)):
        callback = lightning.LearnedSchedulerCallback(monitor=monitor, policy=always(0, 0, 0))
        fit(tmp_path, callback, loaders=2)
        assert {d.valid_loss for d in callback.scheduler.history} - {None} == {1.0 + index}
    stops = {"early_stopping": True, "patience": 3, "policy": always(0, 0, 0)}
    falls = lightning.LearnedSchedulerCallback(monitor="val_acc", mode="max", **stops)
    assert fit(tmp_path, falls, loaders=1, val_check_interval=1).global_step < 24


class Late(pl.Callback):
    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 2:
            config = pl.utilities.types.LRSchedulerConfig(StepLR(trainer.optimizers[0], 1))
            trainer.strategy.lr_scheduler_configs = [config]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            lambda: pl.callbacks.StochasticWeightAveraging(0.05),
            "SWALR from Stochastic.* WeightAveraging",
        ),
        (Late, "StepLR from another callback is not used.*take that callback away"),
    ],
)
def test_lightning_names_the_callback_that_brings_a_scheduler(tmp_path, other, words):
    callback = lightning.LearnedSchedulerCallback(policy=always(0, 0, 0))
    with pytest.warns(UserWarning, match=words):
        fit(tmp_path, callback, others=[other()])
    assert callback.scheduler.history[-1].lr < 0.01


@pytest.mark.parametrize("mode", ["max", "min"])
def test_rising_accuracy_is_no_overfitting(mode):
    job = Job()
    scheduler = LearnedScheduler(job.optimizer, 60, policy=always(0, 0, 0, num_intervals=20))
    for step in range(60):
        job.update(scheduler)
        scheduler.observe_validation(step / 100, mode=mode)
    found = any(i.kind == "overfitting" for i in scheduler.history.interventions)
    assert found == scheduler.should_stop == (mode == "min")
    with pytest.raises(ValueError, match="mode must be 'min' or 'max', but got 'more'"):
        scheduler.observe_validation(0.5, mode="more")


@pytest.mark.parametrize(("saved", "loaded"), [(0, 7), (1, 0), (23, 0), (24, 31)])
def test_distributed_checkpoints_load_in_place(tmp_path, saved, loaded):
    jobs = [Job("SGD" if saved == 23 else "AdamW", norm=True) for _ in range(2)]
    first, second = (LearnedScheduler(j.optimizer, 40, policy=reactive()) for j in jobs)
    jobs[0].run(saved, first)
    jobs[1].run(loaded, second).take_over(jobs[0])
    dcp.save({"scheduler": first}, checkpoint_id=tmp_path, no_dist=True)
    dcp.load({"scheduler": second}, checkpoint_id=tmp_path, no_dist=True)
    ends = [j.run(40 - saved, s).weights() for j, s in zip(jobs, (first, second), strict=True)]
    torch.testing.assert_close(*ends, rtol=0, atol=0)
    assert list(first.history) == list(second.history)


@pytest.mark.parametrize("name", ["AdamW", "SGD", "RMSprop-plain"])
def test_state_made_for_a_checkpoint_is_no_update(name):
    """get_state_dict has an optimizer without state step once, at zero rates and gradients."""
    for settings in ({}, {"lr": torch.tensor(0.01)}):
        job = Job(name, **settings)
        scheduler = LearnedScheduler(job.optimizer, 40, policy=reactive())
        before = job.weights()
        get_state_dict(job.model, job.optimizer)
        torch.testing.assert_close(job.weights(), before, rtol=0, atol=0)
        assert not scheduler._run.monitor.state_dict()["updated"]
