"""Conditional normalizing flows in 3D: torch only, tensors `[N, C, D, H, W]`, no files."""
