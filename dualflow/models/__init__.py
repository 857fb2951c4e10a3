"""Trained models on disk: the typed model card, and how a model is saved and loaded."""
