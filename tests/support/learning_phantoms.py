"""The learning data of a study of phantoms."""

import pandas as pd

from dualflow.commands.learning_data import LearningData


def learning_data(card, training, validation, manifests="same"):
    """Return the learning data of a study of phantoms."""
    pairs = pd.DataFrame({"scan": training.scans, "split": "train"})
    digests = {item["scan"]: manifests for item in [*training.items, *validation.items]}
    return LearningData(pairs, card.side, training, validation, digests)
