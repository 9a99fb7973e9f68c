"""The Trainer of Lightning with the shipped policy: one callback, nothing else.

    python examples/lightning_module.py      (needs pip install 'pacesetter[lightning]')

A small network learns a wave. With the package `lightning`, write ``import lightning as L`` and
``L.Trainer``: the callback serves both.
"""

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pacesetter.agent.adapters.lightning import LearnedSchedulerCallback


class Wave(pl.LightningModule):
    """A regression, as any other module: it returns its loss and logs that of validation."""

    def __init__(self) -> None:
        """Makes the network."""
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Loss of one batch."""
        inputs, targets = batch
        return nn.functional.mse_loss(self.net(inputs), targets)

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        """The callback finds the loss under this name."""
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """An optimizer and no scheduler: the callback brings that."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


torch.manual_seed(0)
inputs = torch.linspace(-3, 3, 640)[torch.randperm(640)][:, None]
rows = TensorDataset(inputs, torch.sin(2 * inputs) + 0.05 * torch.randn(640, 1))
train, valid = torch.utils.data.random_split(rows, [512, 128])

callback = LearnedSchedulerCallback()
trainer = pl.Trainer(
    max_epochs=8,
    accelerator="cpu",
    default_root_dir="runs/lightning",
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    callbacks=[callback],
)
trainer.fit(Wave(), DataLoader(train, 16, shuffle=True), DataLoader(valid, 128))

print(f"validation loss {trainer.callback_metrics['val_loss']:.4f}")
callback.scheduler.history.to_csv("runs/lightning/decisions.csv")
print("every decision is in runs/lightning/decisions.csv")
