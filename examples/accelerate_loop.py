"""The recipe for Accelerate: the scheduler goes onto the optimizer inside the prepared one.

    python examples/accelerate_loop.py      (needs pip install 'pacesetter[huggingface]')

Three things to know. `prepare` wraps the optimizer: give `LearnedScheduler` the one within,
``optimizer.optimizer``. Do not `prepare` the scheduler: Accelerate would step it several times per
update. And under gradient accumulation, step it only where there was an update, with the mean loss.
"""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pacesetter.agent import LearnedScheduler

EPOCHS, ACCUMULATE = 10, 2

torch.manual_seed(0)
inputs = torch.randn(1024, 8)
labels = (inputs[:, :2].prod(1) > 0).long()
batches = DataLoader(TensorDataset(inputs, labels), batch_size=32, shuffle=True)
model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATE)
model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
scheduler = LearnedScheduler(
    optimizer.optimizer,  # not the wrapper
    total_steps=EPOCHS * len(batches) // ACCUMULATE,
)
accelerator.register_for_checkpointing(scheduler)  # save_state() and load_state() include it

for epoch in range(EPOCHS):
    losses = []
    for x, y in batches:
        with accelerator.accumulate(model):
            loss = nn.functional.cross_entropy(model(x), y)
            accelerator.backward(loss)
            losses.append(loss.detach())
            optimizer.step()  # no accelerator.clip_grad_norm_: the scheduler clips
            if accelerator.sync_gradients:
                scheduler.step(torch.stack(losses).mean())
                losses.clear()
            optimizer.zero_grad()
    print(f"epoch {epoch + 1:2d}: lr {scheduler.get_last_lr()[0]:.2e}, loss {loss:.3f}")
