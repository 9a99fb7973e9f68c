"""Meta-training: Stable-Baselines3's PPO learns the schedule from many inner runs."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from pacesetter.agent.policy.export import policy_from_model
from pacesetter.agent.policy.policy import Policy, PolicyInfo, library_versions, save_policy
from pacesetter.agent.runs.folder import RUN_FILE, claim_folder
from pacesetter.agent.training.callbacks import (
    CHECKPOINT,
    POLICY,
    BusyRolloutBuffer,
    MetaTraining,
    load_checkpoint,
)
from pacesetter.agent.training.config import (
    TrainConfig,
    check_start,
    learned_families,
    meter_families,
)
from pacesetter.agent.training.engines import MakeEnv
from pacesetter.agent.training.meter import collect_features, fit_familiarity
from pacesetter.agent.training.validation import ValidationSuite
from pacesetter.envs.features import FEATURE_NAMES
from pacesetter.envs.vec_env import ScheduleVecEnv
from pacesetter.inner_models.engine.host import prepare_process

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}
METER_RUNS = 560
"""Runs that the meter of a new policy is fitted to, at most."""
DECISIONS_PER_METER_RUN = 60
"""A short meta-training gets fewer of them: one for so many decisions of its own, at least 16."""
METER_SEED = 7_000_003
"""Added to the seed of the training: the meter's tasks are others than those learned from."""


def make_learner(
    config: TrainConfig, env: ScheduleVecEnv, *, seed: int, init: Policy | None = None
) -> PPO:
    """PPO for `env`, one rollout being one whole episode of every run.

    The critic and the reward leave nothing to discount (gamma = lambda = 1). PPO's own advantage
    normalisation is off: it would undo the floor under the siblings' spread.

    Args:
        config: settings.
        env: what to learn on.
        seed: of initial weights and exploration.
        init: policy whose weights the actor starts from, the critic starting afresh; None: both
            start from nothing.

    Raises:
        ValueError: `init` has another control or other widths than `config`.
    """
    if init is not None:
        check_start(config, init)
    hidden = list(config.hidden)
    model = PPO(
        "MlpPolicy",
        env,
        n_steps=env.num_decisions,
        batch_size=-(-config.rollout // config.minibatches),
        n_epochs=config.epochs,
        learning_rate=lambda left: config.learning_rate * left,
        gamma=1.0,
        gae_lambda=1.0,
        normalize_advantage=False,
        clip_range=config.clip_range,
        rollout_buffer_class=BusyRolloutBuffer,
        policy_kwargs={
            "net_arch": {"pi": hidden, "vf": hidden},
            "activation_fn": ACTIVATIONS["tanh" if init is None else init.activation],
            "log_std_init": config.log_std,
        },
        # With gSDE a new function is drawn for each rollout: one for a whole run.
        use_sde=config.exploration == "state-dependent",
        seed=seed,
        device="cpu",  # the networks are small: a GPU would wait for its launches
    )
    model.policy.log_std.requires_grad_(config.learn_noise)
    if init is not None:
        load_actor(model, init)
    # An input that is always zero has no gradient: what it begins with, it would keep.
    blind = [name in config.env.hidden_features for name in FEATURE_NAMES]
    actor = nn.Sequential(model.policy.mlp_extractor.policy_net, model.policy.action_net)
    with torch.no_grad():
        next(actor.parameters())[:, blind] = 0.0
    if model.use_sde:
        _fix_noise(model, seed=seed)
    return model


def load_actor(model: Any, policy: Policy) -> None:
    """Puts a policy's weights into the actor of its learner; the critic stays as it is."""
    modules = [*model.policy.mlp_extractor.policy_net, model.policy.action_net]
    linear = [module for module in modules if isinstance(module, nn.Linear)]
    with torch.no_grad():
        for module, (weight, bias) in zip(linear, policy.layers, strict=True):
            module.weight.copy_(torch.from_numpy(weight))
            module.bias.copy_(torch.from_numpy(bias))


def _fix_noise(model: PPO, *, seed: int) -> None:
    """Makes the random function of gSDE depend on the seed and the decisions so far alone.

    SB3 draws it between a checkpoint's making and its use, from torch's global generator: a run
    that is resumed would draw another.
    """
    policy = model.policy
    assert isinstance(policy, ActorCriticPolicy)
    draw = policy.reset_noise

    def reset_noise(n_envs: int = 1) -> None:
        entropy = np.random.SeedSequence((seed, model.num_timesteps))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(entropy.generate_state(1)[0]))
            draw(n_envs)

    policy.reset_noise = reset_noise  # type: ignore[method-assign]


def train(
    config: TrainConfig,
    out: Path,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    resume: bool = False,
    progress: bool = True,
    preset: str | None = None,
    init: Policy | None = None,
    meter: bool = True,
    make_env: MakeEnv = ScheduleVecEnv,
) -> Path:
    """Meta-trains a policy and writes its file.

    The folder then holds ``policy.safetensors`` (the best on the validation tasks so far; at the
    end with a meter for unfamiliar jobs, see `fit_meter`),
    ``checkpoint.pt``, ``validation.csv``, TensorBoard logs in ``tensorboard/`` and ``run.json``. A
    run that was stopped at any point, resumed, ends in the same policy as one that ran through,
    bit for bit on the CPU with the same number of threads. Two settings of this process are made
    first, which stay: see `pacesetter.inner_models.engine.host.prepare_process`.

    Args:
        config: what to learn, and for how long.
        out: the run's folder, new or empty; or that of a run to go on with.
        seed: of tasks, exploration and initial weights.
        device: where the inner runs live.
        resume: go on with the run in `out`.
        progress: show a progress bar.
        preset: name of the preset, for the policy's header.
        init: policy to go on learning from (see `fine_tuning_config`). It is validated first,
            as row 0 of ``validation.csv``: what comes out is never worse on the validation
            tasks than what went in.
        meter: whether to give the policy its meter.
        make_env: makes the environment; see `pacesetter.agent.training.engines`.

    Returns:
        Path of the policy file.

    Raises:
        FileExistsError: `out` holds something and `resume` is off.
        ValueError: `out` holds another run, or its checkpoint is broken; or `init` has another
            control or other widths than `config`.
    """
    prepare_process()
    if init is not None:
        check_start(config, init)
    start = None if init is None else init.digest
    settings = {"config": config.to_dict(), "seed": seed, "preset": preset, "init": start}
    claim_folder(out, kind="train", settings=settings, resume=resume)
    env = make_env(config.families, replace(config.env, device=device), seed=seed)
    model = make_learner(config, env, seed=seed, init=init)
    extra: dict[str, Any] = {}
    if resume and (out / CHECKPOINT).is_file():
        extra = load_checkpoint(out / CHECKPOINT, model, env)
    commit = _commit()

    def snapshot(learner: PPO) -> Policy:
        info = PolicyInfo(
            families=learned_families(config, init),
            preset=preset,
            seed=seed,
            decisions=learner.num_timesteps + (0 if init is None else init.info.decisions),
            commit=commit,
            versions=library_versions(),
            provenance={"config": config.to_dict(), **_origin(init)},
        )
        return policy_from_model(learner, control=config.env.control, info=info)

    try:
        suite = ValidationSuite(config, device=device)
    except ValueError:
        if not resume:  # nothing has been done: the folder is free again
            (out / RUN_FILE).unlink()
        raise
    model.set_logger(configure(str(out / "tensorboard"), ["tensorboard"]))
    callback = MetaTraining(
        config,
        out=out,
        env=env,
        suite=suite,
        snapshot=snapshot,
        extra=extra,
        progress=progress,
        validate_start=init is not None,
    )
    left = config.rollouts * config.rollout - model.num_timesteps
    if left > 0:
        try:
            model.learn(left, callback=callback, reset_num_timesteps=False)
        finally:
            callback.close()
            env.close()
    policy = callback.best
    assert policy is not None
    if meter:
        policy = fit_meter(policy, config, seed=seed, device=device, progress=progress)
    return save_policy(policy, out / POLICY)


def fit_meter(
    policy: Policy,
    config: TrainConfig,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Policy:
    """Gives a policy the meter for unfamiliar jobs, from runs on its families."""
    num_runs = min(METER_RUNS, max(16, config.decisions // DECISIONS_PER_METER_RUN))
    seen = collect_features(
        policy,
        meter_families(config, policy),
        num_runs=num_runs,
        seed=METER_SEED + seed,
        device=device,
        progress=progress,
    )
    return policy.with_familiarity(fit_familiarity(seen.features, runs=seen.runs))


def _origin(init: Policy | None) -> dict[str, Any]:
    """What a policy's header says of the policy that its training started from."""
    if init is None:
        return {}
    names = ("families", "preset", "seed", "decisions")
    return {"init": {"sha256": init.digest, **{name: init.header[name] for name in names}}}


def _commit() -> str | None:
    """The commit of the checkout that this code runs from, if it is one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
