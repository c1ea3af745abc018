"""Distilling a draft head from a target: prompts, the target's own outputs, features, training."""
