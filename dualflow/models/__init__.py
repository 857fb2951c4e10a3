"""Trained models on disk: the model card, and saving and loading of models."""
