"""Long pieces of work: their folders, their progress, and signals that stop them."""
