"""How a gradient lies to momentum and the latest update: against all parameters laid end to end."""

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, NAdam, RMSprop

from pacesetter.agent.plugin import directions
from pacesetter.agent.plugin.directions import read_directions
from pacesetter.agent.plugin.optimizer_state import Setting

KINDS = {
    "AdamW": (AdamW, {}),
    "AdamW-amsgrad": (AdamW, {"amsgrad": True}),
    "AdamW-maximize": (AdamW, {"maximize": True}),
    "NAdam": (NAdam, {}),
    "SGD": (SGD, {"momentum": 0.9}),
    "RMSprop": (RMSprop, {"momentum": 0.9}),
}


def make(name, dtypes=(torch.float64, torch.float32, torch.float64)):
    """Two groups, with parameters that have had different numbers of updates."""
    g = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (7,), (2, 5)]
    params = [
        nn.Parameter(torch.randn(s, generator=g).to(d)) for s, d in zip(shapes, dtypes, strict=True)
    ]
    kind, options = KINDS[name]
    groups = [{"params": params[:2], "lr": 0.1}, {"params": params[2:], "lr": 0.01}]
    optimizer = kind(groups, lr=1.0, **options)
    for step in range(4):
        for i, p in enumerate(params):
            absent = i == 1 and step < 2
            p.grad = None if absent else torch.randn(p.shape, generator=g).to(p.dtype)
        if step < 3:
            optimizer.step()
    return optimizer, [Setting(0.1, 0.9), Setting(0.01, 0.9)]


def expected(optimizer, latest):
    grads, momenta, updates = [], [], []
    for group, setting in zip(optimizer.param_groups, latest, strict=True):
        for p in group["params"]:
            state = optimizer.state[p]
            grads.append(-p.grad if group["maximize"] else p.grad)
            if "exp_avg" in state:
                momenta.append(state["exp_avg"])
                t = float(state["step"])
                second = state.get("max_exp_avg_sq", state["exp_avg_sq"])
                corrected = (second / (1 - 0.999**t)).sqrt() + 1e-8
                update = state["exp_avg"] / (1 - 0.9**t) / corrected
            else:
                update = state["momentum_buffer"]
                momenta.append(update)
            updates.append(setting.lr * update)
    g, m, u = (torch.cat([t.double().flatten() for t in x]) for x in (grads, momenta, updates))
    return [float(a @ b) for a, b in ((g, m), (m, m), (g, u), (u, u))]


@pytest.mark.parametrize("at_once", [1, 5, 13, 10**6])
@pytest.mark.parametrize("name", KINDS)
def test_sums_are_those_of_all_parameters_however_they_are_cut(name, at_once, monkeypatch):
    monkeypatch.setattr(directions, "_AT_ONCE", at_once)
    optimizer, latest = make(name)
    found = read_directions(
        optimizer, latest, device=torch.device("cpu"), dtype=torch.float64
    ).tolist()
    # One parameter, and its share of the sums, is of float32.
    assert found == pytest.approx(expected(optimizer, latest), rel=1e-4, abs=1e-6)


def test_nothing_is_known_before_the_first_update_or_of_sparse_gradients():
    where = {"device": torch.device("cpu"), "dtype": torch.float64}
    embedding = nn.Embedding(4, 2, sparse=True)
    optimizer = SGD(embedding.parameters(), lr=0.1, momentum=0.9)
    latest = [Setting(0.1, 0.9)]
    embedding.weight.grad = torch.ones(4, 2)
    assert read_directions(optimizer, latest, **where) is None
    optimizer.step()
    assert read_directions(optimizer, latest, **where) is not None
    embedding.weight.grad = None
    embedding(torch.tensor([1])).sum().backward()
    assert read_directions(optimizer, latest, **where) is None
