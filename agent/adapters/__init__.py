"""`LearnedScheduler` in the Trainers of transformers and Lightning, with no loss to pass by hand.

- `pacesetter.agent.adapters.huggingface`: a callback for the Trainer of transformers.
- `pacesetter.agent.adapters.lightning`: a callback for the Trainer of Lightning.

Each needs the extra of its name, and nothing here imports either package. Accelerate needs no
adapter: ``examples/accelerate_loop.py`` is the recipe.
"""
