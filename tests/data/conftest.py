import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest


@pytest.fixture
def make_bids(tmp_path) -> Callable[..., Path]:
    """Make a BIDS tree whose files are empty: the index reads names, never voxels."""

    def make(
        files: Iterable[str],
        participants: str | None = None,
        columns: Mapping[str, object] | None = None,
        name: str = "study",
    ) -> Path:
        root = tmp_path / name
        root.mkdir()
        (root / "dataset_description.json").write_text('{"Name": "test", "BIDSVersion": "1.10.0"}')
        for file in files:
            path = root / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        if participants is not None:
            (root / "participants.tsv").write_text(participants)
        if columns is not None:
            (root / "participants.json").write_text(json.dumps(columns))
        return root

    return make


def pair(label: str, session: str = "") -> list[str]:
    """The T1w and FDG files of one scan."""
    folder, key = f"sub-{label}", f"sub-{label}"
    if session:
        folder, key = f"{folder}/ses-{session}", f"{key}_ses-{session}"
    return [f"{folder}/anat/{key}_T1w.nii.gz", f"{folder}/pet/{key}_trc-FDG_pet.nii.gz"]


@pytest.fixture
def pair_files() -> Callable[..., list[str]]:
    """See `pair`."""
    return pair
