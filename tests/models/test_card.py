"""The model card: JSON round trip and validation."""

import pytest
from pydantic import ValidationError

from dualflow.config import StudyConfig
from dualflow.models.card import ModelCard, StudyRecord


def test_a_card_survives_json(card):
    """Spec, side encoder and preprocessing are restored as objects."""
    restored = ModelCard.model_validate_json(card.model_dump_json())
    assert restored == card
    assert restored.side.names == ["age"]
    assert restored.spec.low_rank == 2


def test_a_card_holds_no_path_of_the_study():
    """The study record has modalities and column names, but no paths."""
    study = StudyConfig(name="x", bids="somewhere", side=("age",), extra_sources=("FLAIR",))
    record = StudyRecord.of(study)
    assert record.extra_sources == ("FLAIR",)
    assert "somewhere" not in record.model_dump_json()


def test_a_card_counts_its_source_channels(card):
    """One channel for the main source, and one for each extra source."""
    study = card.study.model_copy(update={"extra_sources": ("FLAIR", "T2w")})
    assert card.model_copy(update={"study": study}).source_channels == 3


def test_an_unknown_field_is_refused(card):
    """A card with unknown fields, as of a later version, is not partly read."""
    with pytest.raises(ValidationError):
        ModelCard.model_validate(card.model_dump() | {"colour": "blue"})
