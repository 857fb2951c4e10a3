"""From a trained model to synthetic volumes in native space."""
