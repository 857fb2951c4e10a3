"""From a study to tensors: the index of usable scans, splits by subject, side information, datasets."""
