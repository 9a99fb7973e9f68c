"""Your own training job in a comparison, from the script to the report.

    python examples/own_comparison.py

The same from the command line, with all arms and 20 trials, in the folder of the script:

    pacesetter compare --task own_comparison:make_task --out runs/own
"""

from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pacesetter.experiments import CompareConfig, compare


def build_model() -> nn.Module:
    """Called under a seed of the comparison's: every arm starts from the same weights."""
    return nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 2))


def make_task(seed: int = 0) -> tuple[object, ...]:
    """Model, loaders and loss, as a training script has them."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(600, 10, generator=generator)
    labels = (inputs[:, 0] * inputs[:, 1] > 0).long()

    def loader(start: int, end: int) -> DataLoader[tuple[torch.Tensor, ...]]:
        return DataLoader(TensorDataset(inputs[start:end], labels[start:end]), batch_size=25)

    loaders = {"train": loader(0, 300), "valid": loader(300, 450), "test": loader(450, 600)}
    return build_model, loaders, nn.CrossEntropyLoss(), {"horizon": 60, "name": "sign of a product"}


if __name__ == "__main__":  # worker processes import this file
    config = CompareConfig(
        tasks=(),
        own_tasks=("own_comparison:make_task",),
        arms=("policy", "adamw-cosine", "sgd-cosine"),
        num_seeds=3,
        trials=5,
    )
    out = Path("runs/own_comparison")
    found = compare(config, out)
    print(found.table)
    print(f"\nreport: {out / 'report.html'}")
