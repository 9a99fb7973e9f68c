"""From a Stable-Baselines3 PPO to a policy file.

The model is read by its attributes: this module never imports stable_baselines3, so that whoever
only runs policies need not install it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from pacesetter.agent.policy.policy import Policy, PolicyInfo, library_versions, save_policy
from pacesetter.envs.actions import NUM_ACTIONS, ControlConfig
from pacesetter.envs.features import NUM_FEATURES

Layer = tuple[NDArray[np.float32], NDArray[np.float32]]

_ACTIVATIONS: dict[type[nn.Module], str] = {nn.Tanh: "tanh", nn.ReLU: "relu"}


def export_policy(
    model: Any,
    path: str | PathLike[str],
    *,
    provenance: Mapping[str, Any] | None = None,
    families: Sequence[str] = (),
    preset: str | None = None,
    commit: str | None = None,
    control: ControlConfig | None = None,
) -> Path:
    """Writes the policy of a PPO that was trained on this library's environments.

    Args:
        model: a `stable_baselines3.PPO` with ``"MlpPolicy"``.
        path: of the policy file to write.
        provenance: anything to remember about its making, in JSON types.
        families: names of the task families that it was trained on.
        preset: name of its training preset.
        commit: of the repository that trained it.
        control: bounds and step sizes that it was trained with; None: those of the model's
            environment, or the default if it has none.

    Returns:
        The path.

    Raises:
        ValueError: the model's spaces, networks or normalisation are not those of a policy here.
    """
    info = PolicyInfo(
        families=tuple(families),
        preset=preset,
        seed=getattr(model, "seed", None),
        decisions=int(getattr(model, "num_timesteps", 0)),
        commit=commit,
        versions=library_versions(),
        provenance=dict(provenance or {}),
    )
    return save_policy(policy_from_model(model, control=control, info=info), path)


def policy_from_model(
    model: Any, *, control: ControlConfig | None = None, info: PolicyInfo | None = None
) -> Policy:
    """The policy of a PPO, in memory; a copy that further training leaves as it is.

    Args:
        model: as for `export_policy`.
        control: as for `export_policy`.
        info: where it came from.

    Raises:
        ValueError: as for `export_policy`.
    """
    _check_spaces(model)
    _check_inputs(model)
    layers, activation = _read_network(model.policy)
    return Policy(layers, activation=activation, control=control or _control_of(model), info=info)


def _check_spaces(model: Any) -> None:
    seen = getattr(model.observation_space, "shape", None)
    if seen != (NUM_FEATURES,):
        raise ValueError(
            f"expected an observation space of shape ({NUM_FEATURES},), that of pacesetter's "
            f"environments, but got {model.observation_space}"
        )
    space = model.action_space
    low, high = getattr(space, "low", None), getattr(space, "high", None)
    bounded = low is not None and high is not None and np.all(low == -1) and np.all(high == 1)
    if getattr(space, "shape", None) != (NUM_ACTIONS,) or not bounded:
        raise ValueError(
            f"expected an action space Box(-1, 1, ({NUM_ACTIONS},)), but got {model.action_space}"
        )


def _check_inputs(model: Any) -> None:
    """Whatever stands between observation and network would have to be in the file as well."""
    extractor = type(model.policy.features_extractor).__name__
    if extractor != "FlattenExtractor":
        raise ValueError(f"expected features as they come (FlattenExtractor), but got {extractor}")
    if getattr(model.policy, "squash_output", False):
        raise ValueError("expected actions that are clipped, but the model squashes them")
    normalised = model.get_vec_normalize_env()
    if normalised is not None and getattr(normalised, "norm_obs", True):
        raise ValueError(
            "expected observations as they come, but the model's environment is wrapped in "
            "VecNormalize: pacesetter's features are normalised already"
        )


def _read_network(policy: Any) -> tuple[list[Layer], str]:
    """Layers from inputs to actions, and the activation between them."""
    layers: list[Layer] = []
    activations: set[str] = set()
    modules = [*policy.mlp_extractor.policy_net, policy.action_net]
    for i, module in enumerate(modules):
        if i % 2 == 0 and isinstance(module, nn.Linear) and module.bias is not None:
            layers.append((_numbers(module.weight), _numbers(module.bias)))
        elif i % 2 == 1 and type(module) in _ACTIVATIONS:
            activations.add(_ACTIVATIONS[type(module)])
        else:
            raise ValueError(
                "expected linear layers with biases and Tanh or ReLU between them, but got "
                f"{module} as module {i} of the policy's network"
            )
    if len(activations) > 1:
        raise ValueError(f"expected one kind of activation, but got {sorted(activations)}")
    return layers, activations.pop() if activations else "tanh"


def _numbers(tensor: Tensor) -> NDArray[np.float32]:
    return np.asarray(tensor.detach().cpu().numpy(), dtype=np.float32)


def _control_of(model: Any) -> ControlConfig:
    env = model.get_env()
    if env is None:
        return ControlConfig()
    try:
        found = env.get_attr("control")
    except AttributeError:
        return ControlConfig()
    controls = [c for c in found if isinstance(c, ControlConfig)]
    if not controls:
        return ControlConfig()
    if any(c != controls[0] for c in controls):
        raise ValueError("the model's environments differ in their control: pass control=")
    return controls[0]
