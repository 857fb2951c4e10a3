"""The typed model card."""

import pytest
from pydantic import ValidationError

from dualflow.config import StudyConfig
from dualflow.models.card import ModelCard, StudyRecord


def test_a_card_is_the_same_after_json(card):
    """Spec, side encoder and preprocessing come back as the objects they were."""
    again = ModelCard.model_validate_json(card.model_dump_json())
    assert again == card
    assert again.side.names == ["age"]
    assert again.spec.low_rank == 2


def test_a_card_names_no_folder_of_the_study():
    """The study's record has modalities and columns alone."""
    study = StudyConfig(name="x", bids="somewhere", side=("age",), extra_sources=("FLAIR",))
    record = StudyRecord.of(study)
    assert record.extra_sources == ("FLAIR",)
    assert "somewhere" not in record.model_dump_json()


def test_a_card_counts_its_source_channels(card):
    """One for the main source and one for each further one."""
    study = card.study.model_copy(update={"extra_sources": ("FLAIR", "T2w")})
    assert card.model_copy(update={"study": study}).source_channels == 3


def test_an_unknown_field_is_refused(card):
    """A card of a later version is not half read."""
    with pytest.raises(ValidationError):
        ModelCard.model_validate(card.model_dump() | {"colour": "blue"})
