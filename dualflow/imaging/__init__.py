"""Volumes: a header gate, geometry, bias field, brain mask, registration, intensity, and the pair pipeline."""
