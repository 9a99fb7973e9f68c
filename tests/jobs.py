"""Small jobs in plain loops, and policies made by hand, for tests of the plug-in."""

import copy
import io

import numpy as np
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, NAdam, RAdam, RMSprop

from pacesetter.agent.plugin.history import Decision
from pacesetter.agent.plugin.scheduler import LearnedScheduler
from pacesetter.agent.policy.policy import Policy
from pacesetter.envs.actions import ControlConfig
from pacesetter.envs.features import FEATURE_NAMES, NUM_FEATURES

KINDS = {
    "AdamW": (AdamW, {"lr": 1e-2}),
    "AdamW-fused": (AdamW, {"lr": 1e-2, "fused": True}),
    "AdamW-foreach": (AdamW, {"lr": 1e-2, "foreach": True}),
    "AdamW-amsgrad": (AdamW, {"lr": 1e-2, "amsgrad": True}),
    "Adam": (Adam, {"lr": 1e-2, "weight_decay": 1e-3}),
    "Adam-fused": (Adam, {"lr": 1e-2, "fused": True}),
    "SGD": (SGD, {"lr": 1e-2, "momentum": 0.9}),
    "SGD-nesterov": (SGD, {"lr": 1e-2, "momentum": 0.8, "nesterov": True}),
    "SGD-plain": (SGD, {"lr": 1e-1}),
    "SGD-fused": (SGD, {"lr": 1e-2, "momentum": 0.9, "fused": True}),
    "RMSprop": (RMSprop, {"lr": 1e-3, "momentum": 0.9}),
    "RMSprop-plain": (RMSprop, {"lr": 1e-3}),
    "NAdam": (NAdam, {"lr": 1e-2}),
    "RAdam": (RAdam, {"lr": 1e-2}),
}


def always(*action, **control):
    """The policy that answers the same to everything."""
    layer = (np.zeros((3, NUM_FEATURES)), np.array(action, dtype=float))
    return Policy([layer], control=ControlConfig(**control))


def reactive(seed=0, *, size=0.15, **control):
    """A policy whose answers depend on all that it sees."""
    rng = np.random.default_rng(seed)
    shapes = [(8, NUM_FEATURES), (3, 8)]
    layers = [(size * rng.normal(size=s), size * rng.normal(size=s[0])) for s in shapes]
    return Policy(layers, control=ControlConfig(**control))


def feature(decision, name):
    return decision.features[FEATURE_NAMES.index(name)]


def decision(step, **changes):
    """A decision made up; its numbers go with the step."""
    known = {"loss": 1 / step, "lr": 0.1 / step, "lr_factor": 1 / step, "momentum": 0.9}
    features = tuple(step + i / 7 for i in range(NUM_FEATURES))
    more = {"clip_threshold": 2.0, "features": features, "action": (0.25, -0.5, 1.0)}
    return Decision(**{"step": step, **known, **more, **changes})


def flat(model):
    """All parameters laid end to end."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def through_a_file(*parts):
    """Their states, read back from a file with nothing but tensors and plain types allowed."""
    file = io.BytesIO()
    torch.save([part.state_dict() for part in parts], file)
    file.seek(0)
    return torch.load(file, weights_only=True)


class Job:
    """A small regression in a plain loop.

    `groups` has the options of param groups. Each has a layer; the last has the rest.
    """

    def __init__(
        self, name="AdamW", *, dtype=torch.float64, norm=False, device="cpu", groups=({},), **kwargs
    ):
        g = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(64, 4, generator=g).to(device, dtype)
        self.targets = self.inputs.sin().sum(1, keepdim=True)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            middle = [nn.BatchNorm1d(8)] if norm else []
            model = nn.Sequential(nn.Linear(4, 8), *middle, nn.Tanh(), nn.Linear(8, 1))
            self.model = model.to(device, dtype)
        layers = [params for layer in self.model if (params := list(layer.parameters()))]
        rest = [p for params in layers[len(groups) - 1 :] for p in params]
        parts = zip([*layers[: len(groups) - 1], rest], groups, strict=True)
        kind, usual = KINDS[name]
        self.optimizer = kind([{"params": p, **g} for p, g in parts], **{**usual, **kwargs})
        self.done, self.losses, self.lrs = 0, [], []

    def loss(self):
        rows = [(7 * self.done + i) % 64 for i in range(8)]
        return (self.model(self.inputs[rows]) - self.targets[rows]).square().mean()

    def update(self, scheduler=None, *, scale=1.0):
        loss = self.loss() * scale
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.done += 1
        self.losses.append(loss.detach())
        self.lrs.append(float(self.optimizer.param_groups[0]["lr"]))
        if scheduler is not None:
            scheduler.step(loss)

    def run(self, count, scheduler=None, *, after=lambda: None):
        for _ in range(count):
            self.update(scheduler)
            after()
        return self

    def weights(self):
        return flat(self.model)

    def take_over(self, other):
        """Goes on where another job stands, with a copy of its model's and optimizer's states."""
        self.model.load_state_dict(other.model.state_dict())
        self.optimizer.load_state_dict(copy.deepcopy(other.optimizer.state_dict()))
        self.done = other.done
        return self


def start(total, policy, *, job=None, **options):
    """A job and its scheduler."""
    job = job or Job()
    return job, LearnedScheduler(job.optimizer, total, policy=policy, **options)
