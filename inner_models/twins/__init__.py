"""Layers and functions that `torch.func.vmap` batches well, substituted at run time."""
