"""Training: the loop, its objective, checkpoints and tracking."""
