"""Metrics, regions, calibration, and comparison with confidence intervals."""
