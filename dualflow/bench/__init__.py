"""Measurements across flows: what each costs and what it gives for it."""
