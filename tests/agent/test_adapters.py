"""The callbacks for other people's Trainers, against the real packages: tiny jobs, no downloads."""

import importlib.util
import json
import math
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import jobs
import pytest
import torch
from jobs import always, flat
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR

from pacesetter.agent.plugin.scheduler import LearnedScheduler

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # these packages warn of each other while they are imported
    import accelerate
    import pytorch_lightning as pl
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    from pacesetter.agent.adapters import huggingface, lightning

pytestmark = [
    # batches of four rows are noisy: whether the guard acts is not what is tested here
    pytest.mark.filterwarnings("ignore:LearnedScheduler. lr_cut at"),
    # Lightning and its torchmetrics on what torch and Python have renamed since
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(lightning|pytorch_lightning|torch).*"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists and is not empty.*"),
]

NUM_ROWS, BATCH = 48, 4


def reactive(num_intervals=10):
    return jobs.reactive(size=0.3, num_intervals=num_intervals)


def rows():
    g = torch.Generator().manual_seed(0)
    inputs = torch.randn(NUM_ROWS, 3, generator=g)
    return inputs, inputs.sin().sum(1, keepdim=True)


DATA = [{"x": x, "labels": y} for x, y in zip(*rows(), strict=True)]


class Net(nn.Module):
    """A model in the manner of transformers: it returns its loss."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x, labels=None):
        output = self.layers(x)
        if labels is None:
            return {"logits": output}
        return {"loss": mse_loss(output, labels), "logits": output}


class NetOfTuples(Net):
    def forward(self, x, labels=None):
        return tuple(super().forward(x, labels).values())


def by_hand(model, updates, policy, *, accumulate=1, grouped=False):
    """The same job in a plain loop: its scheduler, and the learning rate of every update."""
    params = list(model.parameters())
    if grouped:  # as Trainer groups them: with weight decay, if there were any, and without
        params = [{"params": [p for p in params if p.ndim == n]} for n in (2, 1)]
    optimizer = AdamW(params, lr=1e-2, weight_decay=0.0)
    scheduler = LearnedScheduler(optimizer, updates, policy=policy)
    inputs, targets = rows()
    lrs, micro, per_epoch = [], 0, NUM_ROWS // BATCH
    for _ in range(updates):
        losses = []
        for _ in range(accumulate):
            first = micro % per_epoch * BATCH
            out = model(inputs[first : first + BATCH], targets[first : first + BATCH])
            loss = out["loss"] if isinstance(out, dict) else out[0]
            (loss / accumulate).backward()
            losses.append(loss.detach())
            micro += 1
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(sum(losses) / len(losses))
        optimizer.zero_grad()
    return scheduler, lrs


def assert_same_history(history, expected, *, rel=0):
    assert len(history) == len(expected) > 0
    for one, other in zip(history, expected, strict=True):
        assert one.step == other.step
        for field in ("loss", "lr", "lr_factor", "momentum", "clip_threshold", "features"):
            assert getattr(one, field) == pytest.approx(getattr(other, field), rel=rel, abs=rel)
        assert one.interventions == other.interventions


class Sequential(Trainer):
    """Trainer that does not shuffle, so that a plain loop can do the same."""

    def _get_train_sampler(self, *args):
        return None


def trainer_for(tmp_path, callback, model=None, *, kind=Sequential, others=(), data=DATA, **kwargs):
    trainer_kwargs = {k: kwargs.pop(k) for k in ("compute_loss_func", "optimizers") if k in kwargs}
    args = {
        **{"output_dir": str(tmp_path), "use_cpu": True, "disable_tqdm": True, "report_to": []},
        **{"max_steps": 20, "per_device_train_batch_size": BATCH, "dataloader_pin_memory": False},
        **{"learning_rate": 1e-2, "optim": "adamw_torch", "warmup_steps": 5, "logging_steps": 1},
        **{"save_strategy": "no", "remove_unused_columns": False, **kwargs},
    }
    return kind(
        Net() if model is None else model,
        TrainingArguments(**args),
        train_dataset=data,
        eval_dataset=data,
        callbacks=[callback, *others],
        **trainer_kwargs,
    )


@pytest.mark.parametrize(("net", "accumulate"), [(Net, 3), (NetOfTuples, 1)])
def test_huggingface_is_the_plain_loop(tmp_path, net, accumulate):
    callback = huggingface.LearnedSchedulerCallback(policy=reactive())
    trainer = trainer_for(tmp_path, callback, net(), gradient_accumulation_steps=accumulate)
    trainer.train()
    plain = net()
    scheduler, lrs = by_hand(plain, 20, reactive(), accumulate=accumulate, grouped=True)
    assert_same_history(callback.scheduler.history, scheduler.history)
    torch.testing.assert_close(flat(trainer.model), flat(plain), rtol=0, atol=0)
    logged = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == lrs


def test_huggingface_gives_back_what_it_took(tmp_path):
    callback = huggingface.LearnedSchedulerCallback(policy=always(0, 0, 0))
    trainer = trainer_for(tmp_path, callback, max_steps=8, max_grad_norm=0.7)
    seen = []

    class Counter(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append((args.max_grad_norm, trainer.lr_scheduler.last_epoch))

    trainer.add_callback(Counter())
    trainer.train()
    assert seen == [(0.0, step) for step in range(1, 9)]
    assert trainer.args.max_grad_norm == 0.7
    assert type(trainer.lr_scheduler) is LambdaLR
    assert not trainer.model._forward_hooks
    assert "pacesetter" not in trainer.optimizer.state_dict()["param_groups"][0]
    first = callback.scheduler
    trainer.train()  # a second time, from scratch
    assert callback.scheduler is not first
    assert len(callback.scheduler.history) == len(first.history)


def test_huggingface_dry_run_changes_nothing(tmp_path):
    plain = trainer_for(tmp_path, TrainerCallback(), gradient_accumulation_steps=2)
    plain.train()
    callback = huggingface.LearnedSchedulerCallback(dry_run=True, policy=reactive())
    shadow = trainer_for(tmp_path, callback, gradient_accumulation_steps=2)
    shadow.train()
    assert len(callback.scheduler.history) == 9
    first = callback.scheduler.history[0]
    assert first.lr == pytest.approx(1e-2 * first.lr_factor)  # not from the 0 of the warm-up
    torch.testing.assert_close(flat(shadow.model), flat(plain.model), rtol=0, atol=0)


class Spy(TrainerCallback):
    """Notes learning rate and clipping of every update."""

    def __init__(self):
        self.lrs, self.norms = [], []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.lrs.append(optimizer.param_groups[0]["lr"])
        self.norms.append(args.max_grad_norm)


def test_huggingface_leaves_the_users_warmup_alone(tmp_path):
    spy = Spy()
    callback = huggingface.LearnedSchedulerCallback(warmup_steps=5, policy=always(0, 0, 0))
    trainer_for(tmp_path, callback, others=[spy]).train()
    assert spy.lrs[:6] == pytest.approx([0, 2e-3, 4e-3, 6e-3, 8e-3, 1e-2], rel=1e-2)
    assert spy.norms == [1.0] * 5 + [0.0] * 15
    final = callback.scheduler.history[-1]
    assert final.lr == pytest.approx(1e-2 * final.lr_factor)


@pytest.mark.parametrize("control", [("momentum",), ("lr", "clip")])
def test_huggingface_leaves_alone_what_it_does_not_control(tmp_path, control):
    plain, spy = Spy(), Spy()
    trainer_for(tmp_path, plain).train()
    callback = huggingface.LearnedSchedulerCallback(control=control, policy=always(0.5, 0.5, 0.5))
    trainer_for(tmp_path, callback, others=[spy]).train()
    assert (spy.lrs == plain.lrs) == ("lr" not in control)
    assert (spy.norms == plain.norms) == ("clip" not in control)


def test_huggingface_resumes_bit_for_bit_and_to_a_later_end(tmp_path):
    def job(folder, **kwargs):
        callback = huggingface.LearnedSchedulerCallback(policy=reactive())
        kwargs = {"save_strategy": "steps", "save_steps": 7, "eval_strategy": "steps", **kwargs}
        return callback, trainer_for(folder, callback, kind=Trainer, eval_steps=4, **kwargs)

    whole, through = job(tmp_path / "whole", gradient_accumulation_steps=2)
    through.train()
    resumed, trainer = job(tmp_path / "elsewhere", gradient_accumulation_steps=2)
    with torch.no_grad():
        trainer.model.layers[0].weight.zero_()  # comes from the checkpoint
    trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-7"))
    torch.testing.assert_close(flat(trainer.model), flat(through.model), rtol=0, atol=0)
    assert_same_history(resumed.scheduler.history, whole.scheduler.history)
    saved = tmp_path / "whole" / "checkpoint-7" / "optimizer.pt"
    state = torch.load(saved, weights_only=True)["param_groups"][0]["pacesetter"]
    assert state["step"] == 7
    json.loads((tmp_path / "whole" / "checkpoint-7" / "trainer_state.json").read_text())
    resumed, trainer = job(tmp_path / "later", gradient_accumulation_steps=2, max_steps=40)
    trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-7"))
    assert resumed.scheduler.total_steps == trainer.state.global_step == 40
    assert [d.step for d in resumed.scheduler.history if d.step > 30]


def test_huggingface_takes_up_a_run_begun_without_it(tmp_path):
    """So it does after a stretch without the callback, whose checkpoints hand on an old state."""
    first = huggingface.LearnedSchedulerCallback(policy=always(0, 0, 0))
    trainer_for(tmp_path, first, max_steps=10, save_strategy="steps", save_steps=4).train()
    bare = trainer_for(tmp_path, TrainerCallback(), save_strategy="steps", save_steps=4)
    bare.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    callback = huggingface.LearnedSchedulerCallback(policy=always(0, 0, 0))
    trainer = trainer_for(tmp_path, callback, save_strategy="steps", save_steps=4)
    with pytest.warns(UserWarning, match="goes on at update 8, but its checkpoint holds no state"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert callback.scheduler.total_steps == 12
    again = huggingface.LearnedSchedulerCallback(policy=always(0, 0, 0))
    resumed = trainer_for(tmp_path, again)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    assert_same_history(again.scheduler.history, callback.scheduler.history)
    torch.testing.assert_close(flat(resumed.model), flat(trainer.model), rtol=0, atol=0)


def test_huggingface_hands_over_validation_losses_and_logs(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        LearnedScheduler, "observe_validation", lambda self, value: seen.append(value)
    )
    callback = huggingface.LearnedSchedulerCallback(policy=always(0, 0.5, 0.5))
    trainer = trainer_for(tmp_path, callback, eval_strategy="steps", eval_steps=5)
    trainer.train()
    history = trainer.state.log_history
    assert seen == [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert len(seen) == 4
    trainer.evaluate()  # after training: of no interest
    assert len(seen) == 4
    last = [entry for entry in history if "loss" in entry][-1]
    assert last["pacesetter/clip_threshold"] > 0
    assert last["pacesetter/momentum"] == trainer.optimizer.param_groups[0]["betas"][0] < 0.9


def test_huggingface_stops_early(tmp_path):
    """At a learning rate of zero the validation loss never gets better."""
    stops = {"early_stopping": True, "patience": 2}
    callback = huggingface.LearnedSchedulerCallback(**stops, policy=reactive())
    settings = {"learning_rate": 0.0, "eval_strategy": "steps", "eval_steps": 1}
    trainer = trainer_for(tmp_path, callback, **settings)
    trainer.train()
    assert trainer.state.global_step == callback.scheduler.history[-1].step < 20
    assert callback.scheduler.should_stop
    with pytest.raises(ValueError, match="eval_strategy is 'no'"):
        trainer_for(tmp_path, callback).train()


class OwnLoss(Trainer):
    """Computes the loss itself: the model does not see the labels."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = 3 * mse_loss(outputs["logits"], labels)
        return (loss, outputs) if return_outputs else loss


def test_huggingface_reads_a_loss_that_trainer_computes(tmp_path):
    callback = huggingface.LearnedSchedulerCallback(policy=reactive())
    settings = {"gradient_accumulation_steps": 2, "logging_steps": 2, "kind": OwnLoss}
    with pytest.raises(ValueError, match=r"no loss in training.*read_loss_from\(trainer\)"):
        trainer_for(tmp_path, callback, **settings).train()
    trainer = trainer_for(tmp_path, callback, **settings)
    callback.read_loss_from(trainer)
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    means = [decision.loss for decision in callback.scheduler.history]
    assert means == pytest.approx(logged[: len(means)], rel=1e-5)


def language_model(**config):
    torch.manual_seed(0)
    sizes = {"vocab_size": 17, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
    silent = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(**sizes, **silent, **config))


def sentences():
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(17, (NUM_ROWS, 8), generator=g)
    labels = ids.clone()
    for row in range(NUM_ROWS):
        labels[row, : row % 6] = -100  # so that micro-batches have unequal numbers of items
    return [{"input_ids": i, "labels": y} for i, y in zip(ids, labels, strict=True)]


@pytest.mark.parametrize(
    ("settings", "direct"),
    [({}, True), ({}, False), ({"label_smoothing_factor": 0.1}, False), ({"bf16": True}, True)],
)
def test_huggingface_loss_of_a_language_model_is_trainers(tmp_path, settings, direct):
    """The model returns shares of the loss of an update: they add up to what Trainer logs."""
    callback = huggingface.LearnedSchedulerCallback(policy=reactive())
    settings = {**settings, "gradient_accumulation_steps": 3, "logging_steps": 2}
    trainer = trainer_for(tmp_path, callback, language_model(), data=sentences(), **settings)
    if not direct:
        callback.read_loss_from(trainer)
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    means = [decision.loss for decision in callback.scheduler.history]
    assert len(means) == 9
    assert means == pytest.approx(logged[:9], rel=1e-5)


def test_huggingface_overrules_a_scheduler_of_the_users(tmp_path):
    model = Net()
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    foreign = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    callback = huggingface.LearnedSchedulerCallback(policy=always(0, 0, 0))
    trainer_for(tmp_path, callback, model, optimizers=(optimizer, foreign)).train()
    final = callback.scheduler.history[-1]
    assert final.lr == pytest.approx(0.05 * final.lr_factor, rel=1e-12)
    assert foreign.last_epoch == 20


def begun(callback, **settings):
    """A model and its optimizer, as a Trainer on several devices hands them to the callback."""
    model = language_model().train()
    optimizer = AdamW(model.parameters(), lr=1e-2)
    args = SimpleNamespace(eval_strategy="no", fsdp="", max_grad_norm=0.0, world_size=8, **settings)
    state = SimpleNamespace(global_step=0, max_steps=10, log_history=[])
    callback.on_train_begin(args, state, None, model=model, optimizer=optimizer, lr_scheduler=None)
    return model, optimizer, state


def test_huggingface_used_again_reads_and_logs_as_the_new_job_has_it():
    callback = huggingface.LearnedSchedulerCallback(control=("momentum",), policy=always(0, 0, 0))
    batch = {name: column[None] for name, column in sentences()[0].items()}
    for averages in (True, False):
        model, optimizer, state = begun(callback, average_tokens_across_devices=averages)
        loss = model(**batch, num_items_in_batch=7).loss
        loss.backward()
        optimizer.step()
        callback.on_step_end(None, state, SimpleNamespace())
        seen = callback.scheduler._run.monitor.fetch().loss_mean[0]
        assert seen == pytest.approx(loss.item() * (8 if averages else 1))
    optimizer.param_groups[0]["lr"] = math.nan
    logs = {"loss": 1.0}
    callback.on_log(None, state, None, logs)
    assert logs == {"loss": 1.0, "pacesetter/momentum": 0.9}


def test_huggingface_refuses_a_foreign_optimizer(tmp_path):
    with pytest.raises(TypeError, match="Adafactor"):
        trainer_for(tmp_path, huggingface.LearnedSchedulerCallback(), optim="adafactor").train()


class Module(pl.LightningModule):
    def __init__(self, configure=None):
        super().__init__()
        self.net = Net()
        self.configure = configure
        self.seen = []

    def training_step(self, batch, batch_idx):
        return self.net(*batch)["loss"]

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.net(*batch)["loss"])

    def on_before_optimizer_step(self, optimizer):
        self.seen.append(optimizer.param_groups[0]["lr"])

    def configure_optimizers(self):
        if self.configure is not None:
            return self.configure(self)
        return AdamW(self.parameters(), lr=1e-2, weight_decay=0.0)


def loader():
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*rows()), batch_size=BATCH, shuffle=False
    )


def fit(tmp_path, callback, module=None, *, ckpt_path=None, **kwargs):
    validate = kwargs.pop("validate", False)
    trainer = pl.Trainer(
        **{
            **{"default_root_dir": tmp_path, "accelerator": "cpu", "max_epochs": 4},
            **{f"enable_{n}": False for n in ("checkpointing", "progress_bar", "model_summary")},
            **{"logger": False, "log_every_n_steps": 1, "callbacks": [callback], **kwargs},
        }
    )
    module = module or Module()
    trainer.fit(module, loader(), loader() if validate else None, ckpt_path=ckpt_path)
    return trainer, module


@pytest.mark.parametrize("accumulate", [1, 3])
def test_lightning_is_the_plain_loop(tmp_path, accumulate):
    callback = lightning.LearnedSchedulerCallback(policy=reactive(4))
    trainer, module = fit(tmp_path, callback, accumulate_grad_batches=accumulate)
    updates = 48 // accumulate
    assert trainer.global_step == callback.scheduler.total_steps == updates
    plain = Net()
    scheduler, lrs = by_hand(plain, updates, reactive(4), accumulate=accumulate)
    assert_same_history(callback.scheduler.history, scheduler.history, rel=1e-6)
    torch.testing.assert_close(flat(module.net), flat(plain), rtol=1e-6, atol=1e-7)
    assert module.seen[0] == lrs[0]
    assert callback.scheduler.history[-1].step > updates // 2


def test_lightning_counts_the_rest_of_an_epoch_as_an_update_unless_told_the_number(tmp_path):
    for told, expected in (({}, 6), ({"total_steps": 100}, 100)):
        callback = lightning.LearnedSchedulerCallback(policy=reactive(4), **told)
        trainer, _ = fit(tmp_path, callback, accumulate_grad_batches=5, max_epochs=2)
        assert callback.scheduler.total_steps == expected
        assert callback.scheduler.state_dict()["run"]["steps"] == trainer.global_step == 6


def test_lightning_resumes_bit_for_bit(tmp_path):
    def parts():
        checkpoint = pl.callbacks.ModelCheckpoint(
            tmp_path, every_n_epochs=2, save_top_k=-1, save_on_train_epoch_end=True
        )
        return [lightning.LearnedSchedulerCallback(policy=reactive()), checkpoint]

    callbacks = parts()
    kwargs = {"enable_checkpointing": True, "validate": True, "accumulate_grad_batches": 2}
    _, through = fit(tmp_path, None, callbacks=callbacks, **kwargs)
    (half,) = tmp_path.glob("epoch=1-*.ckpt")
    again = parts()
    _, resumed = fit(tmp_path, None, callbacks=again, ckpt_path=half, **kwargs)
    torch.testing.assert_close(flat(resumed), flat(through), rtol=0, atol=0)
    assert_same_history(again[0].scheduler.history, callbacks[0].scheduler.history)
    assert torch.load(half, weights_only=True)["callbacks"]["LearnedSchedulerCallback"]


def with_schedulers(module):
    optimizer = SGD(module.parameters(), lr=0.05, momentum=0.9)
    warmup = LambdaLR(optimizer, lambda step: step / 10)
    return [optimizer], [{"scheduler": warmup, "interval": "step"}]


def test_lightning_takes_other_schedulers_away(tmp_path):
    callback = lightning.LearnedSchedulerCallback(policy=always(0, 0, 0))
    with pytest.warns(UserWarning, match="LambdaLR from configure_optimizers is not used") as told:
        fit(tmp_path, callback, Module(with_schedulers))
    assert len([w for w in told if "LambdaLR" in str(w.message)]) == 1
    final = callback.scheduler.history[-1]
    assert final.lr == pytest.approx(0.05 * final.lr_factor, rel=1e-12)


def test_lightning_dry_run_changes_nothing(tmp_path):
    _, plain = fit(tmp_path, pl.Callback(), Module(with_schedulers))
    callback = lightning.LearnedSchedulerCallback(dry_run=True, policy=reactive())
    settings = {"gradient_clip_val": 1e6}  # Lightning's to keep
    _, shadow = fit(tmp_path, callback, Module(with_schedulers), **settings)
    assert len(callback.scheduler.history) == 9
    first = callback.scheduler.history[0]
    assert first.lr == pytest.approx(0.05 * first.lr_factor)  # not from the 0 of the warm-up
    assert shadow.seen == plain.seen
    torch.testing.assert_close(flat(shadow), flat(plain), rtol=0, atol=0)


def test_lightning_leaves_the_users_warmup_alone(tmp_path):
    callback = lightning.LearnedSchedulerCallback(warmup_steps=10, policy=always(0, 0, 0))
    _, module = fit(tmp_path, callback, Module(with_schedulers))
    assert module.seen[:11] == pytest.approx([0.005 * step for step in range(11)], rel=1e-2)
    assert module.seen[11:] == sorted(module.seen[11:], reverse=True)
    assert module.seen[-1] < 0.005


def test_lightning_hands_over_validation_losses_and_logs(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        LearnedScheduler, "observe_validation", lambda self, value: seen.append(float(value))
    )
    callback = lightning.LearnedSchedulerCallback(policy=reactive(5))
    logger = pl.loggers.CSVLogger(tmp_path)
    trainer, _ = fit(tmp_path, callback, validate=True, logger=logger)
    assert len(seen) == 4
    assert seen[-1] == float(trainer.callback_metrics["val_loss"])
    table = Path(logger.log_dir, "metrics.csv").read_text()
    assert str(callback.scheduler.history[0].lr) in table


def at_zero(module):
    return AdamW(module.parameters(), lr=0.0)


def test_lightning_stops_early(tmp_path):
    """At a learning rate of zero the validation loss never gets better."""
    settings = {"early_stopping": True, "policy": reactive(12)}
    callback = lightning.LearnedSchedulerCallback(patience=2, **settings)
    trainer, _ = fit(tmp_path, callback, Module(at_zero), validate=True, val_check_interval=2)
    assert callback.scheduler.should_stop
    assert trainer.global_step <= 12  # of 48
    nameless = lightning.LearnedSchedulerCallback(monitor="loss", **settings)
    with pytest.raises(ValueError, match=r"'loss', but the module logs \['val_loss'\]"):
        fit(tmp_path, nameless, validate=True)


def two_optimizers(module):
    half = list(module.parameters())
    return [SGD(half[:2], lr=0.1), SGD(half[2:], lr=0.1)]


def test_lightning_refuses_what_it_cannot_serve(tmp_path):
    manual = Module()
    manual.automatic_optimization = False
    for module, settings, message in (
        (manual, {}, "Module optimizes by hand"),
        (Module(two_optimizers), {}, "multiple optimizers"),  # Lightning itself
        (None, {"gradient_clip_val": 1.0}, r"gradient_clip_val=1\.0 would clip"),
        (None, {"max_epochs": -1}, r"estimated_stepping_batches is inf.*set max_steps"),
    ):
        with pytest.raises((ValueError, RuntimeError), match=message):
            fit(tmp_path, lightning.LearnedSchedulerCallback(), module, **settings)


def test_accelerate_recipe_is_the_plain_loop(tmp_path):
    # Accelerate keeps the loaders of earlier programs, here of Trainers that were stopped, in the
    # process, and takes the end of an epoch from them.
    accelerate.state.GradientState._reset_state()
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(
        cpu=True, gradient_accumulation_steps=3, step_scheduler_with_optimizer=False
    )
    model = Net()
    optimizer = AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    model, optimizer, batches = accelerator.prepare(model, optimizer, loader())
    scheduler = LearnedScheduler(optimizer.optimizer, 16, policy=reactive())
    accelerator.register_for_checkpointing(scheduler)
    losses = []
    for _ in range(4):
        for inputs, targets in batches:
            with accelerator.accumulate(model):
                loss = model(inputs, targets)["loss"]
                accelerator.backward(loss)
                optimizer.step()
                losses.append(loss.detach())
                if accelerator.sync_gradients:
                    scheduler.step(sum(losses) / len(losses))
                    losses.clear()
                optimizer.zero_grad()
    plain = Net()
    expected, _ = by_hand(plain, 16, reactive(), accumulate=3)
    assert_same_history(scheduler.history, expected.history)
    torch.testing.assert_close(flat(model), flat(plain), rtol=0, atol=0)
    accelerator.save_state(str(tmp_path / "state"))
    assert list((tmp_path / "state").glob("custom_checkpoint_0.pkl"))


def executed_anew(module):
    """The module of an adapter, as it would be with the packages that there are now."""
    spec = importlib.util.find_spec(module.__name__)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize("name", ["huggingface", "lightning"])
def test_missing_package_names_the_extra(name, monkeypatch):
    for package in ("transformers", "lightning", "pytorch_lightning"):
        for loaded in [m for m in sys.modules if m.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, loaded)
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"pip install 'pacesetter\[{name}\]'"):
        executed_anew({"huggingface": huggingface, "lightning": lightning}[name])


def test_lightning_goes_by_the_name_that_the_program_uses(monkeypatch):
    """A stand-in for the other package of the two, which has the same `Callback`."""
    stand_in = SimpleNamespace(Callback=type("Callback", (), {}))
    monkeypatch.setitem(sys.modules, "lightning.pytorch", stand_in)
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)
    bases = executed_anew(lightning).LearnedSchedulerCallback.__bases__
    assert bases == (stand_in.Callback,)
