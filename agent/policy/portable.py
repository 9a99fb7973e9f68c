"""The policy's network for other runtimes: ONNX, and a program of `torch.export`.

Both take ``features`` (n, NUM_FEATURES) in float32 and give ``action`` (n, 3) in float32. Inside
they compute in float64 as `Policy.act` does, and are held against it before anything is written.
They are the network alone: bounds and step sizes are in the metadata, for whoever applies them.
"""

from __future__ import annotations

import io
import json
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pacesetter.agent.policy.policy import Policy
from pacesetter.agent.runs.folder import write_bytes
from pacesetter.envs.actions import ACTION_NAMES
from pacesetter.envs.features import FEATURE_BOUND, FEATURE_NAMES, NUM_FEATURES
from pacesetter.inner_models.lookup import require

TOLERANCE = 1e-6
"""The greatest difference from `Policy.act` that is let through."""
OPSET = 17
IR_VERSION = 8
"""Of ONNX: old enough for every runtime of these years."""
METADATA_FILE = "pacesetter.json"
"""Where a program keeps its metadata, among its extra files."""
_CHECKED_ROWS = 1000


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
    """Writes a policy as an ONNX model, once ONNX Runtime has found it equal.

    Args:
        policy: what to write.
        path: of the file; folders on the way are made.

    Returns:
        The path.

    Raises:
        ImportError: onnx or onnxruntime is missing; the message has the line that installs them.
        ValueError: ONNX Runtime computes other actions; nothing is written.
    """
    onnx = require("onnx", extra="export")
    runtime = require("onnxruntime", extra="export")
    model = _onnx_model(onnx, policy)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def act(features: NDArray[np.float32]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = session.run(["action"], {"features": features})[0]
        return found

    _check_equal(policy, act, what="the ONNX model")
    path = Path(path)
    write_bytes(path, data)
    return path


def export_program(policy: Policy, path: str | PathLike[str]) -> Path:
    """Writes a policy as a program of `torch.export`, once it was read back and found equal.

    Read it with ``torch.export.load(path).module()``.

    Args:
        policy: what to write.
        path: of the file, which PyTorch wants to end in ``.pt2``; folders on the way are made.

    Returns:
        The path.

    Raises:
        ValueError: the path has another ending, or the program computes other actions; nothing is
            written.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise ValueError(f"a torch.export program must end in .pt2, but got {path.name!r}")
    program = torch.export.export(
        _Network(policy),
        (torch.zeros(2, NUM_FEATURES),),
        dynamic_shapes={"features": {0: torch.export.Dim("n")}},
        strict=False,  # the newer default; the older one cannot trace named buffers
    )
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={METADATA_FILE: json.dumps(metadata(policy))})
    file.seek(0)
    module = torch.export.load(file).module()

    def act(features: NDArray[np.float32]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = module(torch.from_numpy(features)).numpy()
        return found

    _check_equal(policy, act, what="the torch.export program")
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
            x = nn.functional.linear(
                x, self.get_buffer(f"weight_{i}"), self.get_buffer(f"bias_{i}")
            )
            if i < self._count - 1:
                x = torch.tanh(x) if self._tanh else torch.relu(x)
        return torch.clamp(torch.nan_to_num(x, nan=0.0), -1.0, 1.0).to(torch.float32)


def _onnx_model(onnx: Any, policy: Policy) -> Any:
    helper, kinds = onnx.helper, onnx.TensorProto
    constants = {
        "low": np.array(-1.0),
        "high": np.array(1.0),
        "zero": np.array(0.0),
    }
    nodes = [helper.make_node("Cast", ["features"], ["x0"], to=kinds.DOUBLE)]
    for i, (weight, bias) in enumerate(policy.layers):
        constants[f"weight{i}"] = weight.astype(np.float64)
        constants[f"bias{i}"] = bias.astype(np.float64)
        last = i == len(policy.layers) - 1
        out = "raw" if last else f"y{i}"
        nodes.append(helper.make_node("Gemm", [f"x{i}", f"weight{i}", f"bias{i}"], [out], transB=1))
        if not last:
            kind = {"tanh": "Tanh", "relu": "Relu"}[policy.activation]
            nodes.append(helper.make_node(kind, [out], [f"x{i + 1}"]))
    nodes += [
        helper.make_node("IsNaN", ["raw"], ["strange"]),
        helper.make_node("Where", ["strange", "zero", "raw"], ["known"]),
        helper.make_node("Clip", ["known", "low", "high"], ["clipped"]),
        helper.make_node("Cast", ["clipped"], ["action"], to=kinds.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "pacesetter_policy",
        [helper.make_tensor_value_info("features", kinds.FLOAT, ["n", NUM_FEATURES])],
        [helper.make_tensor_value_info("action", kinds.FLOAT, ["n", len(ACTION_NAMES)])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(
        graph,
        producer_name="pacesetter",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    helper.set_model_props(model, metadata(policy))
    return model


def _check_equal(policy: Policy, act: Any, *, what: str) -> None:
    """Holds another runtime's answers against the policy's own, for many rows and for one."""
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
                f"{what} must agree with the policy to {TOLERANCE}, but is off by {off:.3g}: it "
                "was not written; please report this with the versions of torch and onnxruntime"
            )
