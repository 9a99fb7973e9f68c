"""Statistics of training, and the guard against divergence."""
