"""A model and its loss as one function of its parameters, for `torch.func`."""

from __future__ import annotations

from torch import Tensor, nn

from pacesetter.inner_models.task import LossFn


class LossModule(nn.Module):
    """A model and its loss as one module, so that `functional_call` can swap the parameters.

    Args:
        model: the model; its parameters are found under ``model.``.
        loss: ``loss(model, batch)``.
    """

    def __init__(self, model: nn.Module, loss: LossFn) -> None:
        super().__init__()
        self.model = model
        self.loss_fn = loss

    def forward(self, *batch: Tensor) -> Tensor:
        """The loss on a batch."""
        return self.loss_fn(self.model, batch)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a model by their names in its `LossModule`."""
    named = {f"model.{n}": p.detach() for n, p in model.named_parameters()}
    return {**named, **{f"model.{n}": b for n, b in model.named_buffers()}}
