"""Lets tests import what stands beside them, `report_sample`; a policy and its file."""

import sys
from pathlib import Path

import pytest
from jobs import always

from pacesetter.agent.policy.policy import Policy, PolicyInfo, save_policy

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def policy():
    """A policy that raises the learning rate all the time."""
    info = PolicyInfo(families=("teacher-mlp",), preset="smoke", seed=3, decisions=1234)
    found = always(0.5, 0.0, 0.0, num_intervals=5)
    return Policy(found.layers, control=found.control, info=info)


@pytest.fixture
def policy_file(policy, tmp_path):
    return save_policy(policy, tmp_path / "policy.safetensors")
