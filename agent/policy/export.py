"""Policies from Stable-Baselines3, and for other runtimes: ONNX, and a program of `torch.export`.

A PPO is read by its attributes: this module never imports stable_baselines3, so that whoever only
runs policies need not install it.

Both runtimes take ``features`` (n, NUM_FEATURES) in float32 and give ``action`` (n, 3) in float32.
Inside they compute in float64 as `Policy.act` does, and are compared with it before anything is
written. They are the network alone: bounds and step sizes are in the metadata, for whoever applies
them.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pacesetter.agent.policy.file import Float32Array
from pacesetter.agent.policy.policy import Policy, PolicyInfo, library_versions, save_policy
from pacesetter.agent.runs.folder import write_bytes
from pacesetter.envs.actions import ACTION_NAMES, NUM_ACTIONS, ControlConfig
from pacesetter.envs.features import FEATURE_BOUND, FEATURE_NAMES, NUM_FEATURES
from pacesetter.inner_models.lookup import require

Layer = tuple[Float32Array, Float32Array]

TOLERANCE = 1e-6
"""The greatest difference from `Policy.act` that is let through."""
OPSET = 18
"""Of ONNX: the oldest that PyTorch exports to without a conversion."""
METADATA_FILE = "pacesetter.json"
"""Where a program of `torch.export` keeps its metadata, among its extra files."""
_CHECKED_ROWS = 1000
_SHAPES = {"features": {0: torch.export.Dim("n")}}

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

    Arguments and errors are those of `export_policy`; `info` says where it came from.
    """
    if not hasattr(getattr(model, "policy", None), "mlp_extractor"):
        raise ValueError(
            "expected a stable_baselines3.PPO with 'MlpPolicy' (A2C's is the same), but got "
            f"{type(model).__name__}, whose policy has no such network: train with PPO on "
            "ScheduleEnv or ScheduleVecEnv, or use pacesetter.agent.train"
        )
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


def _numbers(tensor: Tensor) -> Float32Array:
    return np.asarray(tensor.detach().cpu().numpy(), dtype=np.float32)


def _control_of(model: Any) -> ControlConfig:
    env, found = model.get_env(), []
    if env is not None:
        with suppress(AttributeError):
            found = env.get_attr("control")
    controls = [c for c in found if isinstance(c, ControlConfig)]
    if any(c != controls[0] for c in controls):
        raise ValueError("the model's environments differ in their control: pass control=")
    return controls[0] if controls else ControlConfig()


# -- other runtimes ------------------------------------------------------------------------------


def metadata(policy: Policy) -> dict[str, str]:
    """What both formats say about a policy.

    Returns:
        ``features`` and ``actions`` (names, as JSON lists), ``sha256`` (the policy's digest) and
        ``header`` (the whole header of the policy file, as JSON).
    """
    return {
        "features": json.dumps(FEATURE_NAMES),
        "actions": json.dumps(ACTION_NAMES),
        "sha256": policy.digest,
        "header": json.dumps(policy.header, sort_keys=True),
    }


def export_onnx(policy: Policy, path: str | PathLike[str]) -> Path:
    """Writes a policy as an ONNX model, once ONNX Runtime has found it equal; makes folders.

    Raises:
        ImportError: a library is missing; the message has the line that installs it.
        ValueError: ONNX Runtime computes other actions; nothing is written.
    """
    onnx = require("onnx", extra="export")
    runtime = require("onnxruntime", extra="export")
    require("onnxscript", extra="export")
    # PyTorch warns of itself here: of its own deprecations, and of torchvision that is not needed.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Network(policy).eval(),
            (torch.zeros(2, NUM_FEATURES),),
            dynamo=True,
            dynamic_shapes=_SHAPES,
            input_names=["features"],
            output_names=["action"],
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, metadata(policy))
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    _check_equal(policy, lambda x: session.run(None, {"features": x})[0], what="the ONNX model")
    write_bytes(Path(path), data)
    return Path(path)


def export_program(policy: Policy, path: str | PathLike[str]) -> Path:
    """Writes a policy as a program of `torch.export`, once it was read back and found equal.

    Read it with ``torch.export.load(path).module()``. Folders on the way are made.

    Raises:
        ValueError: the path does not end in ``.pt2``, as PyTorch wants it, or the program computes
            other actions; nothing is written.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise ValueError(f"a torch.export program must end in .pt2, but got {path.name!r}")
    program = torch.export.export(
        _Network(policy),
        (torch.zeros(2, NUM_FEATURES),),
        dynamic_shapes=_SHAPES,
        strict=False,  # the newer default; the older one cannot trace named buffers
    )
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={METADATA_FILE: json.dumps(metadata(policy))})
    file.seek(0)
    module = torch.export.load(file).module()
    what = "the torch.export program"
    _check_equal(policy, lambda x: module(torch.from_numpy(x)).numpy(), what=what)
    write_bytes(path, file.getvalue())
    return path


class _Network(nn.Module):
    """`Policy.act` in torch."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self._count = len(policy.layers)
        self._tanh = policy.activation == "tanh"
        for i, (weight, bias) in enumerate(policy.layers):
            self.register_buffer(f"weight_{i}", torch.from_numpy(weight.astype(np.float64)))
            self.register_buffer(f"bias_{i}", torch.from_numpy(bias.astype(np.float64)))

    def forward(self, features: Tensor) -> Tensor:
        x = features.to(torch.float64)
        for i in range(self._count):
            weight, bias = (self.get_buffer(f"{name}_{i}") for name in ("weight", "bias"))
            x = nn.functional.linear(x, weight, bias)
            if i < self._count - 1:
                x = torch.tanh(x) if self._tanh else torch.relu(x)
        return torch.clamp(torch.nan_to_num(x, nan=0.0), -1.0, 1.0).to(torch.float32)


def _check_equal(policy: Policy, act: Any, *, what: str) -> None:
    """Compares another runtime with the policy, for many rows and for one."""
    rng = np.random.default_rng(0)
    features = rng.uniform(-FEATURE_BOUND, FEATURE_BOUND, (_CHECKED_ROWS, NUM_FEATURES))
    # Half of them where features usually are, so that not all answers stand at their bounds.
    features[::2] /= FEATURE_BOUND
    rows = features.astype(np.float32)
    for some in (rows, rows[:1]):
        found, expected = act(some), policy.act(some)
        if found.shape != expected.shape:
            raise ValueError(
                f"{what} must give actions of shape {expected.shape}, but gave {found.shape}"
            )
        off = float(np.max(np.abs(found - expected)))
        if not off <= TOLERANCE:
            raise ValueError(
                f"{what} must equal the policy to {TOLERANCE}, but is off by {off:.3g}: it "
                "was not written; please report this with the versions of torch and onnxruntime"
            )
