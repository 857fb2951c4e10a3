"""Bundles: complete, verified on load, without paths, and never written over something else."""

import json
import shutil

import pytest
import torch

from dualflow.baselines import BASELINES
from dualflow.errors import CheckpointError, CommitError
from dualflow.models import bundle as module
from dualflow.models.bundle import (
    BUNDLE,
    MARK,
    README,
    copy_bundle,
    is_bundle,
    public_card,
    verify_bundle,
    write_bundle,
)
from dualflow.models.model_files import MIB
from dualflow.models.store import load_card, load_model, save_model

NAMES = ["README.md", "bundle.json", "model.json", "model.safetensors", "reference.json"]


def readme(files):
    """Return a README that lists the files."""
    return f"---{MARK}---\n{' '.join(sorted(files))}\n"


@pytest.fixture(scope="module")
def model(card, tmp_path_factory):
    """Folder of a mean-image model with one more file of the model, and files of its training."""
    folder = tmp_path_factory.mktemp("model")
    save_model(
        folder, BASELINES["mean_image"](card.shape, 1), card.model_copy(update={"kind": "mean_image", "spec": None})
    )
    (folder / "reference.json").write_text("{}")
    (folder / "history.tsv").write_text("step\n1\n")
    (folder / "state-00000001.safetensors").write_text("x")
    return folder


@pytest.fixture
def bundle(model, tmp_path):
    """A bundle of that model."""
    write_bundle(model, tmp_path / "bundle", load_card(model), readme)
    return tmp_path / "bundle"


def test_a_bundle_has_the_files_of_the_model_only(model, bundle):
    """History and checkpoints stay out, and the model in the bundle is that of the folder."""
    assert sorted(path.name for path in bundle.iterdir()) == NAMES
    assert (bundle / README).read_text().endswith("\nmodel.json model.safetensors reference.json\n")
    assert torch.equal(load_model(bundle).model.image, load_model(model).model.image)
    assert is_bundle(bundle)
    assert not is_bundle(model)


def test_exporting_twice_gives_equal_bytes(model, bundle):
    """The second export replaces the first, and leaves nothing else."""
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    (bundle / README).write_text("changed")
    write_bundle(model, bundle, load_card(model), readme)
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "link"])
def test_a_damaged_file_is_named(bundle, name, damage):
    """A flipped bit, a truncated or missing file, and a link to nothing, of every file."""
    path = bundle / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    {
        "flip": lambda: path.write_bytes(data),
        "cut": lambda: path.write_bytes(data[:-3]),
        "remove": lambda: None,
        "link": lambda: path.symlink_to("nowhere"),
    }[damage]()
    with pytest.raises(CheckpointError, match="again") as error:
        load_model(bundle)
    # A damaged record may no longer name the other files as they are.
    assert name == BUNDLE or name in str(error.value)
    assert str(bundle) in str(error.value)


def test_additional_files_are_refused_and_hidden_ones_ignored(bundle):
    """Files of version control and of the desktop are hidden, and dualflow never reads them."""
    (bundle / ".gitattributes").write_text("x")
    (bundle / ".cache").mkdir()
    load_model(bundle)
    (bundle / "reference.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"reference\.safetensors: is not listed in bundle\.json; remove it"):
        load_model(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format: Input should be 1"),
        ({"files": {}}, r"does not list README\.md"),
        ({"files": {"../x": {"bytes": 1, "sha256": "0" * 64}}}, r"lists '\.\./x', which is no file of a model"),
        ({"files": {"model.json": {"bytes": 1, "sha256": "x"}}}, "sha256: String should match"),
        ({"more": 1}, "more: Extra inputs"),
    ],
)
def test_a_record_that_is_none_is_refused(bundle, change, message):
    """Other versions, foreign names and incomplete lists."""
    path = bundle / BUNDLE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        verify_bundle(bundle)


@pytest.mark.parametrize("name", [BUNDLE, "model.json"])
def test_large_files_are_not_read(bundle, monkeypatch, name):
    """A record or card beyond its limit is refused by its size."""
    with (bundle / name).open("ab") as stream:
        stream.truncate(MIB + 1)
    monkeypatch.setattr(module, "sha256", lambda _path: pytest.fail("was read"))
    path = bundle / name
    with pytest.raises(CheckpointError, match=r"has 1,048,577 bytes, expected at most 1,048,576|does not match"):
        load_model(bundle) if name == BUNDLE else load_card(path.parent)


@pytest.mark.parametrize("kind", ["file", "folder", "model"])
def test_only_a_bundle_is_replaced(model, bundle, tmp_path, kind):
    """A file, a folder with other content and a model folder stay as they are."""
    target = tmp_path / "target"
    if kind == "file":
        target.write_text("mine")
    elif kind == "folder":
        target.mkdir()
        (target / "mine.txt").write_text("mine")
    else:
        shutil.copytree(model, target)
    for write in (lambda: write_bundle(model, target, load_card(model), readme), lambda: copy_bundle(bundle, target)):
        with pytest.raises(CommitError, match="exists and is not a bundle"):
            write()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "target"]


def test_version_control_of_a_bundle_stays_and_other_files_are_not_removed(model, bundle):
    """A new export keeps hidden entries, links too, and refuses to remove what is not of a bundle."""
    (bundle / ".git" / "objects").mkdir(parents=True)
    (bundle / ".git" / "objects" / "commit").write_text("history")
    (bundle / ".gitattributes").symlink_to(".git/objects/commit")
    write_bundle(model, bundle, load_card(model), readme)
    assert (bundle / ".git" / "objects" / "commit").read_text() == "history"
    assert (bundle / ".gitattributes").is_symlink()
    (bundle / "notes.txt").write_text("mine")
    with pytest.raises(CommitError, match=r"also holds notes\.txt, which a new bundle would remove"):
        write_bundle(model, bundle, load_card(model), readme)
    assert (bundle / "notes.txt").read_text() == "mine"


def test_weights_of_another_training_are_not_bundled(model, tmp_path):
    """A model that is trained again during the export is an error, and no folder is left."""
    card = load_card(model).model_copy(update={"weights_sha256": "0" * 64})
    with pytest.raises(CheckpointError, match="does not match the hash"):
        write_bundle(model, tmp_path / "bundle", card, readme)
    assert list(tmp_path.iterdir()) == []


def test_a_copy_is_the_bundle(bundle, tmp_path):
    """All bytes are equal, and a damaged bundle is not copied."""
    copy_bundle(bundle, tmp_path / "copy")
    assert all((tmp_path / "copy" / name).read_bytes() == (bundle / name).read_bytes() for name in NAMES)
    (bundle / README).write_text("changed")
    with pytest.raises(CheckpointError, match=r"README\.md: does not match"):
        copy_bundle(bundle, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("path", ["/home/anna/masks/pons.nii.gz", "masks/pons.nii.gz", "C:\\anna\\pons.nii.gz"])
def test_the_card_names_no_path(card, path):
    """A study's own reference mask is named by its file; a region of the table stays."""
    changed = card.model_copy(update={"preprocess": card.preprocess.model_copy(update={"reference_region": path})})
    assert public_card(changed).preprocess.reference_region == "pons.nii.gz"
    assert public_card(card) == card
