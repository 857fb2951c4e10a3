"""Imaging: NIfTI input and output, geometry, brain mask, bias field, registration, intensity, and their pipeline."""
