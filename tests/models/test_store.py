"""Saving and loading of models: card and weights are saved together, and loaded only if they match."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from dualflow.baselines import BASELINES
from dualflow.errors import CheckpointError
from dualflow.models.store import CARD, load_card, load_model, save_model


@pytest.fixture
def mean_image(card):
    """A mean-image model and its card."""
    model = BASELINES["mean_image"](card.shape, 1)
    torch.nn.init.normal_(model.image)
    return model, card.model_copy(update={"kind": "mean_image", "spec": None})


def test_a_saved_model_can_be_loaded(mean_image, tmp_path):
    """Weights are restored bit for bit, and the card has the hash of the weights."""
    model, card = mean_image
    saved, files = save_model(tmp_path / "model", model, card)
    assert [file.name for file in files] == ["model.safetensors", "model.json"]
    loaded = load_model(tmp_path / "model")
    assert torch.equal(loaded.model.image, model.image)
    assert loaded.card == saved == load_card(tmp_path / "model")
    assert len(saved.weights_sha256) == 64
    assert loaded.flow is None


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "exchange"])
def test_weights_that_do_not_match_their_card_are_refused(mean_image, tmp_path, damage):
    """A flipped bit, a truncated or missing file, and the weights of another model."""
    model, card = mean_image
    _, files = save_model(tmp_path / "model", model, card)
    torch.nn.init.zeros_(model.image)
    _, other = save_model(tmp_path / "other", model, card)
    data = bytearray(files[0].read_bytes())
    data[-1] ^= 1
    {
        "flip": lambda: files[0].write_bytes(data),
        "cut": lambda: files[0].write_bytes(data[:-4]),
        "remove": files[0].unlink,
        "exchange": lambda: files[0].write_bytes(other[0].read_bytes()),
    }[damage]()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: does not match the hash"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", "\x00\udcff"])
def test_a_folder_without_a_card_is_no_model(tmp_path, text):
    """The card is missing, truncated, or not a card."""
    if text is not None:
        (tmp_path / "model.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=r"model\.json") as error:
        load_card(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "nonsense"}, "'nonsense' is unknown; choose from: flow, mean_image"),
        (
            {"kind": "mean_image"},
            "kind 'mean_image' with a spec; a flow has a spec, and a baseline has none",
        ),
        ({"kind": "mean_image", "spec": None}, "do not fit this version"),
        ({"kind": "mean_image", "spec": None, "options": {"width": 3}}, "do not fit this version"),
        ({"shape": [8, 8, 8]}, "do not fit this version"),
        ({"shape": [9, 8, 8]}, "do not fit this version"),
        ({"shape": [8, 8, 1 << 20]}, "expected edges of 1 to 1024"),
        ({"shape": [512, 512, 512]}, "the card claims a larger model than its .* numbers of weights"),
        ({"shape": None}, "shape: Input should be a valid array"),
        ({"study": 1}, "study: Input should be"),
        ({"preprocess": {"aligned": "x"}}, "preprocess.aligned: Input should be a valid boolean"),
        ({"side": {"columns": []}}, "do not fit this version"),
        ({"side": {"columns": [{"kind": "nonsense"}]}}, "side encoder does not read back"),
        ({"weights_sha256": "0"}, "does not match the hash"),
        ({"extra": 1}, "extra: Extra inputs are not permitted"),
        ({"extra": 1, "dualflow": "99.0.0"}, "it is of dualflow 99.0.0, and this is .*: use that version, or train"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(model_folder, tmp_path, change, message):
    """Each invalid field gives a one-line error that names it."""
    shutil.copytree(model_folder, tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message) as error:
        load_model(tmp_path / "model")
    assert "\n" not in str(error.value)


def test_a_flow_is_loaded_without_the_compiler(model_folder):
    """Importing it takes longer than to load the weights, and each step of the workflow would wait for it."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom dualflow.models.store import load_model\n"
        "assert load_model(Path(sys.argv[1])).flow\nprint({'torch._dynamo', 'sympy'} & sys.modules.keys())"
    )
    command = [sys.executable, "-c", code, str(model_folder)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "set()\n"


def test_a_card_without_its_kind_is_refused(model_folder, tmp_path):
    """The error names the missing field."""
    shutil.copytree(model_folder, tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "kind"}))
    with pytest.raises(CheckpointError, match="kind: Field required"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image: image.fill_(float("nan")), "tensor 'image' holds NaN or infinite values"),
        (lambda image: torch.where(image > 1, float("inf"), image), "tensor 'image' holds NaN or infinite values"),
        (lambda image: image.double(), r"tensor 'image' is torch\.float64, expected torch\.float32"),
        (lambda image: image.bfloat16(), r"tensor 'image' is torch\.bfloat16, expected torch\.float32"),
        (lambda image: image.to(torch.int8), r"tensor 'image' is torch\.int8, expected torch\.float32"),
        (lambda image: image[..., :-1].clone(), r"tensor 'image' is 1x16x16x15, expected 1x16x16x16"),
    ],
)
def test_weights_are_not_cast_and_finite(mean_image, tmp_path, change, message):
    """Weights of another dtype or shape, and weights that are not numbers, are refused although the hash matches."""
    model, card = mean_image
    stand_in = torch.nn.Module()
    stand_in.register_buffer("image", change(model.image.detach().clone()))
    save_model(tmp_path / "model", stand_in, card)
    with pytest.raises(CheckpointError, match=message) as error:
        load_model(tmp_path / "model")
    assert "\n" not in str(error.value)


def test_a_folder_above_models_is_told_their_folders(tmp_path):
    """The folder of a model's seeds, or of nothing at all, is easily named by mistake."""
    with pytest.raises(CheckpointError, match="name the folder of a trained model, such as results/STUDY/models"):
        load_card(tmp_path)
    for seed in (1, 0):
        (tmp_path / f"seed-{seed}").mkdir()
        (tmp_path / f"seed-{seed}" / CARD).touch()
    with pytest.raises(CheckpointError, match=r"name one of its folders: .*seed-0, .*seed-1"):
        load_card(tmp_path)
