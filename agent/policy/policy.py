"""The policy in use: a small network from features to actions, and its portable file.

The file carries everything that deciding needs (weights, features with their normalisation, bounds
of the control) and everything that says where it came from. Inference is plain numpy in float64:
a decision costs some tens of microseconds and is the same on every machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib import metadata, resources
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pacesetter.agent.policy.familiarity import Familiarity
from pacesetter.agent.policy.file import (
    PolicyFileError,
    check_header,
    check_info,
    header_fields,
    read_control,
    read_file,
    seal,
    unseal,
)
from pacesetter.agent.runs.folder import write_bytes
from pacesetter.envs.actions import NUM_ACTIONS, ControlConfig, FloatArray
from pacesetter.envs.features import NUM_FEATURES

ACTIVATIONS = ("tanh", "relu")
DEFAULT_POLICY = "default"
_LIBRARIES = ("pacesetter", "torch", "numpy", "safetensors", "gymnasium", "stable-baselines3")


def library_versions() -> dict[str, str]:
    """Versions of the libraries that matter to a policy, where installed."""
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


@dataclass(frozen=True, kw_only=True)
class PolicyInfo:
    """Where a policy came from; nothing here changes what it does.

    Attributes:
        families: names of the task families that it learned from.
        preset: name of the training preset, if one was used.
        seed: of its training.
        decisions: how many decisions it saw.
        commit: of the repository that trained it.
        versions: library versions by name; `library_versions` has those of this process.
        provenance: anything else, in JSON types.
    """

    families: tuple[str, ...] = ()
    preset: str | None = None
    seed: int | None = None
    decisions: int = 0
    commit: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)


class Policy:
    """A network of linear layers that maps features to actions in [-1, 1].

    Args:
        layers: weight of shape (outputs, inputs) and bias of shape (outputs,) of each layer, from
            NUM_FEATURES inputs to 3 outputs. They are rounded to float32, as a file holds them.
        activation: ``"tanh"`` or ``"relu"``, between layers; the last one is linear.
        control: bounds and step sizes that the policy was trained with.
        info: where it came from.
        familiarity: tells features that are unfamiliar to the policy; None: none is.

    Raises:
        ValueError: shapes that do not fit, weights that are not finite, or another activation.
    """

    def __init__(
        self,
        layers: Sequence[tuple[ArrayLike, ArrayLike]],
        *,
        activation: str = "tanh",
        control: ControlConfig | None = None,
        info: PolicyInfo | None = None,
        familiarity: Familiarity | None = None,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {ACTIVATIONS}, but got {activation!r}")
        self.layers = tuple(
            (np.array(w, dtype=np.float32), np.array(b, dtype=np.float32)) for w, b in layers
        )
        _check_layers(self.layers)
        self.activation = activation
        self.control = control or ControlConfig()
        self.info = info or PolicyInfo()
        self.familiarity = familiarity
        self._exact = [(w.T.astype(np.float64), b.astype(np.float64)) for w, b in self.layers]
        self._activate = np.tanh if activation == "tanh" else _relu

    @classmethod
    def do_nothing(cls, control: ControlConfig | None = None) -> Policy:
        """The policy whose every action is zero: the base schedule and nothing else.

        >>> Policy.do_nothing().act(np.ones((1, NUM_FEATURES))).tolist()
        [[0.0, 0.0, 0.0]]
        """
        layer = (np.zeros((NUM_ACTIONS, NUM_FEATURES)), np.zeros(NUM_ACTIONS))
        return cls([layer], control=control)

    def act(self, features: ArrayLike) -> FloatArray:
        """The action, (n, 3) in [-1, 1] and float64, for each row of features, (n, NUM_FEATURES).

        Features have to be finite; the same row always gets the same action.

        Raises:
            ValueError: the features have another shape.
        """
        x = np.asarray(features, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != NUM_FEATURES:
            raise ValueError(f"features must have shape (n, {NUM_FEATURES}), but got {x.shape}")
        # Weights near the end of float32's range may overflow; what has no value carries on.
        with np.errstate(over="ignore", invalid="ignore"):
            for weight, bias in self._exact[:-1]:
                x = self._activate(x @ weight + bias)
            weight, bias = self._exact[-1]
            x = x @ weight + bias
        return np.clip(np.nan_to_num(x, nan=0.0), -1.0, 1.0)

    def with_familiarity(self, familiarity: Familiarity | None) -> Policy:
        """The same policy with another meter, or none."""
        same: dict[str, Any] = {n: getattr(self, n) for n in ("activation", "control", "info")}
        return Policy(self.layers, **same, familiarity=familiarity)

    @property
    def header(self) -> dict[str, Any]:
        """What the policy's file says about it, ``sha256`` included; JSON types only."""
        return {**self._header(), "sha256": self.digest}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the policy's file, 64 hexadecimal digits: tells policies apart."""
        return self._sealed()[1]

    def to_bytes(self) -> bytes:
        """The policy's file."""
        return self._sealed()[0]

    def _sealed(self) -> tuple[bytes, str]:
        tensors = {}
        for i, (weight, bias) in enumerate(self.layers):
            tensors[f"layers.{i}.weight"], tensors[f"layers.{i}.bias"] = weight, bias
        if self.familiarity is not None:
            tensors.update(self.familiarity.tensors())
        return seal(tensors, self._header())

    def _header(self) -> dict[str, Any]:
        meter = self.familiarity
        header = {
            **header_fields(self.control),
            "activation": self.activation,
            **asdict(self.info),
            "familiarity": None if meter is None else meter.header(),
        }
        # As it will be read back: JSON has lists where Python has tuples.
        plain: dict[str, Any] = json.loads(json.dumps(header, allow_nan=False))
        return plain


def save_policy(policy: Policy, path: str | PathLike[str]) -> Path:
    """Writes a policy's file, whole or not at all; makes folders, and returns the path."""
    path = Path(path)
    write_bytes(path, policy.to_bytes())
    return path


def load_policy(policy: str | PathLike[str] = DEFAULT_POLICY) -> Policy:
    """Reads a policy's file. Nothing in it is executed.

    Args:
        policy: path of the file, or ``"default"`` for the one that this library ships.

    Raises:
        FileNotFoundError: there is no such file.
        PolicyFileError: the file is not a policy, altered or cut short, of another schema version,
            made for other features, or holds weights that do not fit or are not finite.
    """
    if policy == DEFAULT_POLICY:
        shipped = resources.files("pacesetter.agent") / "policies" / "default.safetensors"
        if not shipped.is_file():
            raise FileNotFoundError(
                "this installation of pacesetter ships no policy. Make one with `pacesetter train "
                "--preset laptop --out DIR` and give its file, or use Policy.do_nothing()"
            )
        return parse_policy(shipped.read_bytes(), source="the shipped policy")
    return parse_policy(read_file(Path(policy)), source=str(policy))


def parse_policy(data: bytes, *, source: str) -> Policy:
    """`load_policy` for bytes in memory, called `source` in errors."""
    tensors, header = unseal(data, source=source)
    check_header(header, source=source)
    try:
        meter = header["familiarity"]
        familiarity = None if meter is None else Familiarity.read(tensors, meter)
        layers = [
            (tensors.pop(f"layers.{i}.weight"), tensors.pop(f"layers.{i}.bias"))
            for i in range(len(tensors) // 2)
        ]
        if tensors:
            raise ValueError(f"unknown tensors {sorted(tensors)}")
        if any(array.dtype != np.float32 for layer in layers for array in layer):
            raise ValueError("its weights must be of float32")
        check_info(header)
        info = {name: header[name] for name in PolicyInfo.__dataclass_fields__}
        policy = Policy(
            layers,
            activation=header["activation"],
            control=read_control(header["control"]),
            info=PolicyInfo(**{**info, "families": tuple(info["families"])}),
            familiarity=familiarity,
        )
    except KeyError as error:
        raise PolicyFileError(f"{source} lacks {error}") from error
    except (TypeError, ValueError) as error:
        raise PolicyFileError(f"{source} cannot be used: {error}") from error
    policy.__dict__["digest"] = header["sha256"]  # as written, whatever wrote it
    return policy


def _relu(x: FloatArray) -> FloatArray:
    return np.maximum(x, 0.0)


def _check_layers(layers: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> None:
    if not layers:
        raise ValueError("a policy needs at least one layer")
    inputs = NUM_FEATURES
    for i, (weight, bias) in enumerate(layers):
        outputs = NUM_ACTIONS if i == len(layers) - 1 else max(len(np.atleast_1d(bias)), 1)
        if weight.shape != (outputs, inputs) or bias.shape != (outputs,):
            raise ValueError(
                f"layer {i} needs a weight of shape {(outputs, inputs)} and a bias of shape "
                f"{(outputs,)}, but got {weight.shape} and {bias.shape}"
            )
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise ValueError(f"layer {i} holds weights that are not finite")
        inputs = outputs
