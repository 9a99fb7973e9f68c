"""A task trained as its user would: an ordinary loop, one run at a time."""

import torch

from pacesetter.inner_models.engine.data import batch_stream, build_model


def plainly_trained(task, make_optimizer, *, seed, scheduler=None, dtype=torch.float32):
    """The model afterwards; modes of the optimizer are obeyed, and `scheduler` is made from it."""
    task = task.with_seed(seed)
    model, stream = build_model(task).to(dtype), batch_stream(task)
    optimizer = make_optimizer(model.parameters())
    schedule = scheduler(optimizer) if scheduler else None
    getattr(optimizer, "train", bool)()
    train = [t.to(dtype) if t.is_floating_point() else t for t in task.splits.train]
    for _ in range(task.horizon):
        rows = stream.take(1)[0]
        optimizer.zero_grad()
        task.loss(model, tuple(t[rows] for t in train)).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
    getattr(optimizer, "eval", bool)()
    return model
