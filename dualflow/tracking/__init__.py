"""Experiment tracking: MLflow runs, and the queue that keeps records while a server is unreachable."""
