"""Your own model, data and loss as an environment, and PPO of your own on it.

    python examples/own_task.py

Any SB3 PPO that was trained on these environments becomes a policy file.
"""

import gymnasium
import torch
from stable_baselines3 import PPO
from torch import nn

from pacesetter.agent import LearnedScheduler, export_policy
from pacesetter.inner_models import ModuleTask, Splits

generator = torch.Generator().manual_seed(0)
inputs = torch.randn(400, 8, generator=generator)
targets = torch.sin(inputs.sum(1, keepdim=True))
parts = zip(inputs.split(100), targets.split(100), strict=True)


def build_model() -> nn.Module:
    """Called under a seed of the task's own."""
    return nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))


def loss(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """One number per batch, written as usual."""
    x, y = batch
    return (model(x) - y).square().mean()


task = ModuleTask(build_model, loss, Splits(*parts), horizon=200, batch_size=20, name="sine")
env = gymnasium.make("pacesetter.envs.registration:pacesetter/Schedule-v0", task=task)
ppo = PPO("MlpPolicy", env, n_steps=39, batch_size=39, gamma=1.0, seed=0, device="cpu")
ppo.learn(39 * 4)
path = export_policy(ppo, "runs/own_policy.safetensors")

model = build_model()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
scheduler = LearnedScheduler(optimizer, total_steps=200, policy=path)
print(f"{path} drives a job; first learning rate {scheduler.get_last_lr()[0]:.2e}")
