"""What holds for every test: those marked `gpu` run only where there is a CUDA device."""

import pytest
import torch

from pacesetter.inner_models.rounding import round_alike

round_alike()  # before any test multiplies matrices: later it would have no effect


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
