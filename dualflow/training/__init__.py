"""Training: the loop with its checkpoints, closed-form fits, and calibration."""
