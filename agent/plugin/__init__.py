"""`LearnedScheduler`: the plug-in that drives a PyTorch optimizer in a training job."""
