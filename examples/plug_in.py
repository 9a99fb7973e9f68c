"""The two lines: the shipped policy sets the pace of an ordinary PyTorch job.

    python examples/plug_in.py

A small network learns to classify a spiral; the loop is the usual one.
"""

import math

import torch
from torch import nn

from pacesetter.agent import LearnedScheduler

EPOCHS, BATCH = 40, 50

generator = torch.Generator().manual_seed(0)
angle = 3 * math.pi * torch.rand(1500, generator=generator)
arm = torch.arange(1500) % 3
turned = angle + arm * 2 * math.pi / 3
points = torch.stack((turned.cos(), turned.sin()), dim=1) * angle[:, None] / 5
points += 0.05 * torch.randn(1500, 2, generator=generator)

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
train, valid = slice(0, 1200), slice(1200, 1500)

steps = EPOCHS * (1200 // BATCH)
scheduler = LearnedScheduler(optimizer, total_steps=steps)  # line one
for epoch in range(EPOCHS):
    for rows in torch.randperm(1200, generator=generator).split(BATCH):
        loss = nn.functional.cross_entropy(model(points[rows]), arm[rows])
        loss.backward()
        optimizer.step()
        scheduler.step(loss)  # line two
        optimizer.zero_grad()
    if epoch % 10 == 9:
        with torch.no_grad():
            valid_loss = nn.functional.cross_entropy(model(points[valid]), arm[valid])
        scheduler.observe_validation(valid_loss)  # optional
        print(f"epoch {epoch + 1:3d}: lr {scheduler.get_last_lr()[0]:.2e}, valid {valid_loss:.4f}")

scheduler.history.to_csv("runs/plug_in_history.csv")
print("every decision is in runs/plug_in_history.csv")
