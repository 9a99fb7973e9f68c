"""What a result was made on: versions, machine, and a check that the device is there."""

from __future__ import annotations

import os
import platform

import torch

from pacesetter.agent.policy.policy import library_versions


def describe_environment(device: str = "cpu") -> dict[str, str]:
    """Versions and machine, by name, as reports print them.

    Args:
        device: where the runs lived.
    """
    versions = ", ".join(f"{name} {number}" for name, number in library_versions().items())
    where = device
    # Not here, perhaps, but where the workers are.
    if torch.device(device).type == "cuda" and torch.cuda.is_available():
        where = f"{device} ({torch.cuda.get_device_name(device)})"
    return {
        "libraries": f"Python {platform.python_version()}, {versions}",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} torch threads",
        "device": where,
    }


def check_device(name: str) -> torch.device:
    """Turns the name of a device into one that can be used here.

    Args:
        name: such as ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

    Raises:
        ValueError: torch does not know it, or this machine does not have it.

    >>> check_device("cpu")
    device(type='cpu')
    """
    try:
        device = torch.device(name)
        # The one test that holds for every kind of device: put something there.
        torch.zeros(1, device=device).item()
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0][:120]
        raise ValueError(
            f"device {name!r} cannot be used here ({reason}); 'cpu' always can"
        ) from error
    return device
