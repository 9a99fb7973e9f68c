"""The callbacks for other people's Trainers, against the real packages: tiny jobs, no downloads."""

import importlib.util
import json
import math
import sys
import warnings
from types import SimpleNamespace

import jobs
import pytest
import torch
from jobs import always, flat
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset

from pacesetter.agent.plugin.scheduler import LearnedScheduler

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # these packages warn of each other while they are imported
    import accelerate
    import pytorch_lightning as pl
    import transformers

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
STILL = always(0, 0, 0)


def reactive(num_intervals=10):
    return jobs.reactive(size=0.3, num_intervals=num_intervals)


def rows():
    g = torch.Generator().manual_seed(0)
    inputs = torch.randn(NUM_ROWS, 3, generator=g)
    return inputs, inputs.sin().sum(1, keepdim=True)


DATA = [{"x": x, "labels": y} for x, y in zip(*rows(), strict=True)]


def loader():
    return DataLoader(TensorDataset(*rows()), batch_size=BATCH, shuffle=False)


class Net(nn.Module):
    """A model in the manner of transformers: it returns its loss."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x, labels):
        output = self.layers(x)
        return {"loss": mse_loss(output, labels), "logits": output}


class NetOfTuples(Net):
    def forward(self, x, labels):
        return tuple(super().forward(x, labels).values())


def standing(model):
    return SGD(model.parameters(), lr=0.0), None


def warming_up(model):
    """An optimizer of the user's, with a warm-up of ten updates."""
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    return optimizer, LambdaLR(optimizer, lambda step: step / 10)


class Spy(transformers.TrainerCallback):
    """Notes learning rate and clipping of every update, and validation losses."""

    def __init__(self):
        self.lrs, self.norms, self.valid = [], [], []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.lrs.append(optimizer.param_groups[0]["lr"])
        self.norms.append(args.max_grad_norm)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.valid.append(metrics["eval_loss"])


class Sequential(transformers.Trainer):
    """Trainer that does not shuffle, so that a plain loop can do the same."""

    def _get_train_sampler(self, *args):
        return None


def hugging_face(
    folder, callback, model=None, *, kind=Sequential, optimizers=None, data=DATA, tell=False,
    resume=None, updates=20, accumulate=1, every=None, save=None, **settings,
):  # fmt: skip
    """Trains: validates every so many updates, and saves every so many."""
    model, spy = model or Net(), Spy()
    args = {
        **{"output_dir": str(folder), "use_cpu": True, "disable_tqdm": True, "report_to": []},
        **{"max_steps": updates, "gradient_accumulation_steps": accumulate, "logging_steps": 1},
        **{"per_device_train_batch_size": BATCH, "dataloader_pin_memory": False},
        **{"learning_rate": 1e-2, "optim": "adamw_torch", "warmup_steps": 5},
        **{"save_strategy": "steps" if save else "no", "save_steps": save or 1},
        **{"eval_strategy": "steps" if every else "no", "eval_steps": every},
        **{"remove_unused_columns": False, **settings},
    }
    trainer = kind(
        model,
        transformers.TrainingArguments(**args),
        train_dataset=data,
        eval_dataset=data,
        callbacks=[*([callback] if callback else []), spy],
        optimizers=optimizers(model) if optimizers else (None, None),
    )
    if tell:
        callback.read_loss_from(trainer)
    trainer.train(resume_from_checkpoint=resume and str(folder / f"checkpoint-{resume}"))
    spy.model, spy.trainer, spy.validate = model, trainer, trainer.evaluate
    spy.optimizer, spy.updates = trainer.optimizer, trainer.state.global_step
    spy.logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    return spy


class Module(pl.LightningModule):
    def __init__(self, optimizers):
        super().__init__()
        self.model, self.optimizers_of = Net(), optimizers
        self.lrs, self.norms, self.valid, self.logged = [], [], [], []

    def training_step(self, batch, batch_idx):
        return self.model(*batch)["loss"]

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.model(*batch)["loss"])

    def on_validation_end(self):
        if not self.trainer.sanity_checking:
            self.valid.append(float(self.trainer.callback_metrics["val_loss"]))

    def on_before_optimizer_step(self, optimizer):
        self.lrs.append(optimizer.param_groups[0]["lr"])

    def configure_optimizers(self):
        if self.optimizers_of is None:
            return AdamW(self.parameters(), lr=1e-2, weight_decay=0.0)
        optimizer, warmup = self.optimizers_of(self.model)
        return [optimizer], [{"scheduler": warmup, "interval": "step"}] if warmup else []


def light(
    folder, callback, *, optimizers=None, updates=20, accumulate=1, every=None, save=None,
    resume=None, manual=False, **settings,
):  # fmt: skip
    """The same with Lightning; `save` and `resume` count epochs."""
    logger, module = pl.loggers.CSVLogger(folder), Module(optimizers)
    logger.log_metrics = lambda metrics, step=None: module.logged.append(metrics)
    module.automatic_optimization = not manual
    callbacks = [callback] if callback else []
    if save:
        often = {"every_n_epochs": save, "save_on_train_epoch_end": True}
        callbacks.append(pl.callbacks.ModelCheckpoint(folder, save_top_k=-1, **often))
    often = {"val_check_interval": every and every * accumulate, "check_val_every_n_epoch": None}
    trainer = pl.Trainer(
        **{
            **{"default_root_dir": folder, "accelerator": "cpu", "enable_progress_bar": False},
            **{"enable_model_summary": False, "enable_checkpointing": bool(save)},
            **{"logger": logger, "callbacks": callbacks, "accumulate_grad_batches": accumulate},
            **{"log_every_n_steps": 1},
            **{"max_steps": updates, **(often if every else {}), **settings},
        }
    )
    checkpoint = next(folder.glob(f"epoch={resume - 1}-*.ckpt")) if resume else None
    trainer.fit(module, loader(), loader() if every else None, ckpt_path=checkpoint)
    module.optimizer, module.updates = trainer.optimizers[0], trainer.global_step
    module.validate = lambda: trainer.validate(module, loader(), verbose=False)
    return module


HUGGING_FACE = (hugging_face, huggingface.LearnedSchedulerCallback)
LIGHT = (light, lightning.LearnedSchedulerCallback)
either = pytest.mark.parametrize(
    ("fit", "make"), [HUGGING_FACE, LIGHT], ids=["huggingface", "lightning"]
)


def by_hand(model, updates, policy, *, accumulate=1, grouped=False):
    """The same job in a plain loop: its scheduler, and the learning rate of every update."""
    params = list(model.parameters())
    if grouped:  # as Trainer groups them: with weight decay, if there were any, and without
        params = [{"params": [p for p in params if p.ndim == n]} for n in (2, 1)]
    optimizer = AdamW(params, lr=1e-2, weight_decay=0.0)
    scheduler = LearnedScheduler(optimizer, updates, policy=policy)
    batches = [batch for _ in range(updates * accumulate) for batch in loader()]
    lrs = []
    for update in range(updates):
        losses = []
        for batch in batches[update * accumulate : (update + 1) * accumulate]:
            out = model(*batch)
            loss = out["loss"] if isinstance(out, dict) else out[0]
            (loss / accumulate).backward()
            losses.append(loss.detach())
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(sum(losses) / len(losses))
        optimizer.zero_grad()
    return scheduler, lrs


def assert_same(history, expected, *models, rel=0):
    assert len(history) == len(expected) > 0
    for one, other in zip(history, expected, strict=True):
        assert one.step == other.step
        for field in ("loss", "lr", "lr_factor", "momentum", "clip_threshold", "features"):
            assert getattr(one, field) == pytest.approx(getattr(other, field), rel=rel, abs=rel)
        assert one.interventions == other.interventions
    torch.testing.assert_close(*map(flat, models), rtol=rel, atol=rel / 10)


@pytest.mark.parametrize(
    ("adapter", "net", "accumulate", "rel"),
    [(HUGGING_FACE, Net, 3, 0), (HUGGING_FACE, NetOfTuples, 1, 0), (LIGHT, Net, 3, 1e-6)],
)
def test_a_trainer_is_the_plain_loop(tmp_path, adapter, net, accumulate, rel):
    callback, plain = adapter[1](policy=reactive()), net()
    given = {"model": net()} if adapter is HUGGING_FACE else {}
    done = adapter[0](tmp_path, callback, accumulate=accumulate, **given)
    scheduler, lrs = by_hand(plain, 20, reactive(), accumulate=accumulate, grouped=bool(given))
    assert_same(callback.scheduler.history, scheduler.history, done.model, plain, rel=rel)
    assert done.lrs == pytest.approx(lrs, rel=rel)
    assert not given or [entry["learning_rate"] for entry in done.logged] == lrs


@either
def test_a_dry_run_changes_nothing(tmp_path, fit, make):
    plain = fit(tmp_path, None, optimizers=warming_up, accumulate=2)
    callback = make(dry_run=True, policy=reactive())
    # Clipping is the Trainer's to keep.
    clip = {} if fit is hugging_face else {"gradient_clip_val": 1e6}
    shadow = fit(tmp_path, callback, optimizers=warming_up, accumulate=2, **clip)
    assert len(callback.scheduler.history) == 9
    first = callback.scheduler.history[0]
    assert first.lr == pytest.approx(0.05 * first.lr_factor)  # not from the 0 of the warm-up
    assert (shadow.lrs, shadow.norms) == (plain.lrs, plain.norms)
    assert torch.equal(flat(shadow.model), flat(plain.model))


@either
def test_the_users_warm_up_is_left_alone(tmp_path, fit, make):
    callback = make(warmup_steps=10, policy=STILL)
    done = fit(tmp_path, callback, optimizers=warming_up)
    assert done.lrs[:11] == pytest.approx([0.005 * step for step in range(11)], rel=1e-2)
    assert done.lrs[11:] == sorted(done.lrs[11:], reverse=True)
    final = callback.scheduler.history[-1]
    assert final.lr == pytest.approx(0.05 * final.lr_factor)
    assert done.lrs[-1] <= final.lr
    assert done.norms == ([1.0] * 10 + [0.0] * 10 if fit is hugging_face else [])


@either
def test_validation_losses_are_handed_over_and_decisions_logged(tmp_path, monkeypatch, fit, make):
    seen = []
    monkeypatch.setattr(
        LearnedScheduler, "observe_validation", lambda self, value, **_: seen.append(float(value))
    )
    callback = make(policy=always(0, 0.5, 0.5))
    done = fit(tmp_path, callback, every=5)
    assert seen == done.valid
    assert len(set(seen)) == 4
    done.validate()  # after training: of no interest
    assert len(seen) == 4
    last = [entry for entry in done.logged if "pacesetter/momentum" in entry][-1]
    assert last["pacesetter/clip_threshold"] > 0
    assert last["pacesetter/momentum"] == callback.scheduler.history[-1].momentum < 0.9
    assert last["learning_rate" if fit is hugging_face else "pacesetter/lr"] in done.lrs


@either
def test_early_stopping(tmp_path, fit, make):
    """At a learning rate of zero the validation loss never gets better."""
    callback = make(early_stopping=True, patience=2, policy=reactive())
    done = fit(tmp_path, callback, optimizers=standing, every=1)
    assert callback.scheduler.should_stop
    assert callback.scheduler.history[-1].step <= done.updates < 12


@pytest.mark.parametrize(
    ("adapter", "options", "settings", "message"),
    [
        (HUGGING_FACE, {"early_stopping": True}, {}, "eval_strategy is 'no'"),
        (HUGGING_FACE, {}, {"optim": "adafactor"}, "Adafactor"),
        (LIGHT, {"early_stopping": True, "monitor": "x"}, {"every": 5}, r"'x', but .*'val_loss'\]"),
        (LIGHT, {}, {"manual": True}, "Module optimizes by hand"),
        (LIGHT, {}, {"gradient_clip_val": 1.0}, r"gradient_clip_val=1\.0 would clip"),
        (LIGHT, {}, {"updates": -1, "max_epochs": -1}, "stepping_batches is inf.*set max_steps"),
    ],
)
def test_what_cannot_be_served_is_refused(tmp_path, adapter, options, settings, message):
    with pytest.raises((TypeError, ValueError), match=message):
        adapter[0](tmp_path, adapter[1](**options), **settings)


def test_huggingface_leaves_alone_what_it_does_not_control(tmp_path):
    plain, policy = hugging_face(tmp_path, None, updates=8), always(0.5, 0.5, 0.5)
    for control in (("momentum",), ("lr", "clip")):
        callback = huggingface.LearnedSchedulerCallback(control=control, policy=policy)
        done = hugging_face(tmp_path, callback, updates=8)
        assert (done.lrs == plain.lrs) == ("lr" not in control)
        assert (done.norms == plain.norms) == ("clip" not in control)


def test_huggingface_overrules_a_scheduler_and_gives_back_what_it_took(tmp_path):
    callback = huggingface.LearnedSchedulerCallback(policy=STILL)
    done = hugging_face(tmp_path, callback, optimizers=warming_up, updates=8, max_grad_norm=0.7)
    trainer, first = done.trainer, callback.scheduler
    final = first.history[-1]
    assert final.lr == pytest.approx(0.05 * final.lr_factor, rel=1e-12)
    assert done.norms == [0.0] * 8
    assert trainer.args.max_grad_norm == 0.7
    assert type(trainer.lr_scheduler) is LambdaLR
    assert trainer.lr_scheduler.last_epoch == 8  # it went on counting
    assert not trainer.model._forward_hooks
    assert "pacesetter" not in trainer.optimizer.state_dict()["param_groups"][0]
    trainer.train()  # a second time, from scratch
    assert callback.scheduler is not first
    assert len(callback.scheduler.history) == len(first.history)


def test_huggingface_resumes_bit_for_bit_and_to_a_later_end(tmp_path):
    def job(resume=None, **settings):
        callback = huggingface.LearnedSchedulerCallback(policy=reactive())
        settings = {"kind": transformers.Trainer, "accumulate": 2, "every": 4, **settings}
        return callback, hugging_face(tmp_path, callback, resume=resume, **settings)

    whole, through = job(save=7)
    broken = Net()
    with torch.no_grad():
        broken.layers[0].weight.zero_()  # comes from the checkpoint
    resumed, done = job(7, model=broken)
    histories = resumed.scheduler.history, whole.scheduler.history
    assert_same(*histories, done.model, through.model)
    saved = tmp_path / "checkpoint-7"
    state = torch.load(saved / "optimizer.pt", weights_only=True)["param_groups"][0]["pacesetter"]
    assert state["step"] == 7
    json.loads((saved / "trainer_state.json").read_text())
    resumed, done = job(7, updates=30)
    assert resumed.scheduler.total_steps == done.updates == 30
    assert [d.step for d in resumed.scheduler.history if d.step > 24]


def test_huggingface_takes_up_a_run_begun_without_it(tmp_path):
    """So it does after a stretch without the callback, whose checkpoints hand on an old state."""

    def job(resume=None, *, callback=None, **settings):
        done = hugging_face(tmp_path, callback, save=4, resume=resume, **settings)
        return done.model

    first, callback, again = (huggingface.LearnedSchedulerCallback(policy=STILL) for _ in range(3))
    job(callback=first, updates=10)
    job(4)
    with pytest.warns(UserWarning, match="goes on at update 8, but its checkpoint holds no state"):
        whole = job(8, callback=callback)
    assert callback.scheduler.total_steps == 12
    resumed = job(12, callback=again)
    assert_same(again.scheduler.history, callback.scheduler.history, resumed, whole)


def language_model(**config):
    torch.manual_seed(0)
    sizes = {"vocab_size": 17, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
    silent = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **silent, **config))


def sentences():
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(17, (NUM_ROWS, 8), generator=g)
    labels = ids.clone()
    for row in range(NUM_ROWS):
        labels[row, : row % 6] = -100  # so that micro-batches have unequal numbers of items
    return [{"input_ids": i, "labels": y} for i, y in zip(ids, labels, strict=True)]


@pytest.mark.parametrize(
    ("settings", "tell"),
    [({}, False), ({}, True), ({"label_smoothing_factor": 0.1}, True), ({"bf16": True}, False)],
)
def test_huggingface_loss_of_a_language_model_is_trainers(tmp_path, settings, tell):
    """The model returns shares of the loss of an update: they add up to what Trainer logs."""
    callback = huggingface.LearnedSchedulerCallback(policy=reactive(5))
    given = {"data": sentences(), "accumulate": 3, "updates": 10, "logging_steps": 2, **settings}
    if "label_smoothing_factor" in settings:  # computed by Trainer: the model sees no labels
        with pytest.raises(ValueError, match=r"no loss in training.*read_loss_from\(trainer\)"):
            hugging_face(tmp_path, callback, language_model(), **given)
    done = hugging_face(tmp_path, callback, language_model(), tell=tell, **given)
    means = [decision.loss for decision in callback.scheduler.history]
    assert len(means) == 4
    assert means == pytest.approx([entry["loss"] for entry in done.logged][:4], rel=1e-5)


def begun(callback, **settings):
    """A model and its optimizer, as a Trainer on several devices hands them to the callback."""
    model = language_model().train()
    optimizer = AdamW(model.parameters(), lr=1e-2)
    args = SimpleNamespace(eval_strategy="no", fsdp="", max_grad_norm=0.0, world_size=8, **settings)
    state = SimpleNamespace(global_step=0, max_steps=10, log_history=[])
    callback.on_train_begin(args, state, None, model=model, optimizer=optimizer, lr_scheduler=None)
    return model, optimizer, state


def test_huggingface_used_again_reads_and_logs_as_the_new_job_has_it():
    callback = huggingface.LearnedSchedulerCallback(control=("momentum",), policy=STILL)
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


def test_lightning_counts_the_rest_of_an_epoch_as_an_update_unless_told_the_number(tmp_path):
    for told, expected in (({}, 6), ({"total_steps": 100}, 100)):
        callback = lightning.LearnedSchedulerCallback(policy=reactive(4), **told)
        done = light(tmp_path, callback, accumulate=5, updates=-1, max_epochs=2)
        assert callback.scheduler.total_steps == expected
        assert callback.scheduler.state_dict()["run"]["steps"] == done.updates == 6


def test_lightning_resumes_bit_for_bit(tmp_path):
    whole, again = (lightning.LearnedSchedulerCallback(policy=reactive()) for _ in range(2))
    settings = {"accumulate": 2, "updates": 18, "every": 3, "save": 1}
    through = light(tmp_path, whole, **settings)
    (half,) = tmp_path.glob("epoch=1-*.ckpt")
    resumed = light(tmp_path, again, resume=2, **settings)
    histories = again.scheduler.history, whole.scheduler.history
    assert_same(*histories, resumed.model, through.model)
    assert torch.load(half, weights_only=True)["callbacks"]["LearnedSchedulerCallback"]


def test_lightning_takes_other_schedulers_away(tmp_path):
    callback = lightning.LearnedSchedulerCallback(policy=STILL)
    with pytest.warns(UserWarning, match="LambdaLR from configure_optimizers is not used") as told:
        light(tmp_path, callback, optimizers=warming_up, updates=8)
    assert len([w for w in told if "LambdaLR" in str(w.message)]) == 1
    final = callback.scheduler.history[-1]
    assert final.lr == pytest.approx(0.05 * final.lr_factor, rel=1e-12)


def test_accelerate_recipe_is_the_plain_loop(tmp_path):
    # Accelerate keeps the loaders of earlier programs, here of Trainers that were stopped, in the
    # process, and takes the end of an epoch from them.
    accelerate.state.GradientState._reset_state()
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(
        cpu=True, gradient_accumulation_steps=3, step_scheduler_with_optimizer=False
    )
    model, plain, losses = Net(), Net(), []
    optimizer = AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    model, optimizer, batches = accelerator.prepare(model, optimizer, loader())
    scheduler = LearnedScheduler(optimizer.optimizer, 16, policy=reactive())
    accelerator.register_for_checkpointing(scheduler)
    for inputs, targets in (batch for _ in range(4) for batch in batches):
        with accelerator.accumulate(model):
            loss = model(inputs, targets)["loss"]
            accelerator.backward(loss)
            optimizer.step()
            losses.append(loss.detach())
            if accelerator.sync_gradients:
                scheduler.step(sum(losses) / len(losses))
                losses.clear()
            optimizer.zero_grad()
    expected, _ = by_hand(plain, 16, reactive(), accumulate=3)
    assert_same(scheduler.history, expected.history, model, plain)
    accelerator.save_state(str(tmp_path / "state"))
    assert list((tmp_path / "state").glob("custom_checkpoint_0.pkl"))


def executed_anew(module):
    """The module of an adapter, as it would be with the packages that there are now."""
    spec = importlib.util.find_spec(module.__name__)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize("module", [huggingface, lightning])
def test_missing_package_names_the_extra(module, monkeypatch):
    for package in ("transformers", "lightning", "pytorch_lightning"):
        for loaded in [m for m in sys.modules if m.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, loaded)
        monkeypatch.setitem(sys.modules, package, None)
    extra = module.__name__.rpartition(".")[2]
    with pytest.raises(ImportError, match=rf"pip install 'pacesetter\[{extra}\]'"):
        executed_anew(module)


def test_lightning_goes_by_the_name_that_the_program_uses(monkeypatch):
    """A stand-in for the other package of the two, which has the same `Callback`."""
    stand_in = SimpleNamespace(Callback=type("Callback", (), {}))
    monkeypatch.setitem(sys.modules, "lightning.pytorch", stand_in)
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)
    bases = executed_anew(lightning).LearnedSchedulerCallback.__bases__
    assert bases == (stand_in.Callback,)
