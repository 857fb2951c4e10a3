"""Metrics, calibration, likelihood, and comparison with confidence intervals."""
