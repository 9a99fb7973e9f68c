"""The Python blocks of the manual's recipes run as they are written, one after another."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pacesetter.agent import load_policy, save_policy

PAGE = Path(__file__).parent.parent / "docs" / "recipes.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def new_job():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3)


class Script:
    """What the recipes take for granted: a model, an optimizer, a loader, a loss."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(800, 4, generator=generator)
        rows = TensorDataset(inputs, inputs.sin().sum(1, keepdim=True))
        self.names = {
            "torch": torch,
            "EPOCHS": 2,
            "loader": DataLoader(rows, batch_size=8),
            "loss_fn": nn.functional.mse_loss,
            "new_job": new_job,
            "train_one_epoch": self.train_one_epoch,
            "validate": self.validate,
        }

    def train_one_epoch(self, scheduler):
        for inputs, targets in self.names["loader"]:
            loss = nn.functional.mse_loss(self.names["model"](inputs), targets)
            loss.backward()
            self.names["optimizer"].step()
            scheduler.step(loss)
            self.names["optimizer"].zero_grad()

    def validate(self):
        inputs, targets = self.names["loader"].dataset[:100]
        with torch.no_grad():
            return nn.functional.mse_loss(self.names["model"](inputs), targets)

    def run(self, block):
        self.names["model"], self.names["optimizer"] = new_job()
        exec(compile(block, str(PAGE), "exec"), self.names)


@pytest.fixture(scope="module")
def blocks():
    return BLOCK.findall(PAGE.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_recipes_run(blocks, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_policy(load_policy("default"), tmp_path / "my-policy.safetensors")
    script = Script()
    for block in blocks:
        script.run(block)
    scheduler = script.names["scheduler"]
    assert scheduler.policy.digest == load_policy("default").digest
    for name in ("checkpoint.pt", "schedule.csv", "runs/decisions.csv", "runs/adamax/report.html"):
        assert (tmp_path / name).is_file()
    printed = capsys.readouterr().out
    assert "clip at" in printed  # a history
    assert "Adamax half cosine" in printed  # a comparison with the reader's own arm


def test_recipes_are_many_and_show_the_examples(blocks):
    assert len(blocks) > 10
    shown = set(re.findall(r'--8<-- "examples/(.*?)\.py"', PAGE.read_text(encoding="utf-8")))
    assert shown == {path.stem for path in (PAGE.parent.parent / "examples").glob("*.py")}
