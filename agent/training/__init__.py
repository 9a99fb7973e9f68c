"""Meta-training: the agent learns with PPO and is chosen by validation."""
