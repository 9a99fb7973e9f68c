"""Task families: distributions of training tasks."""
