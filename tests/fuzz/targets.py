"""TARGETS: the readers of untrusted files, each with valid contents to damage.

A reader gets a folder with the damaged file, calls public functions, and lets a DualflowError pass.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from bad_bytes import GOOD, GOOD_TWO, IMAGE, PACKED, TWO, nifti
from raw_images import verify_image

from dualflow.baselines import BASELINES
from dualflow.config import StudyConfig, load_config
from dualflow.data.participants import known_columns, side_values
from dualflow.data.scan_table import find_samples, sample_values
from dualflow.digests import sha256
from dualflow.errors import DualflowError
from dualflow.flows.presets import preset
from dualflow.imaging.series import open_series
from dualflow.imaging.sidecar import read_sidecar
from dualflow.imaging.volume import read_volume
from dualflow.inference.dicom import Series, choose_series, is_dicom_folder
from dualflow.layout import Scan
from dualflow.manifest import read_manifest, verify_manifests
from dualflow.models.bundle import is_bundle, verify_bundle, write_bundle
from dualflow.models.card import ModelCard
from dualflow.models.model_files import CARD, WEIGHTS
from dualflow.models.store import load_card, load_model, save_model
from dualflow.tracking.queue import RecordQueue, read_record

STUDY = {"name": "s", "source": "T1w", "target": "FDG", "side": ["age"]}
AGE = {"kind": "Continuous", "name": "age", "mean": 70.0, "sd": 8.0, "low": 55.0, "high": 86.0}
SEX = {"kind": "Categorical", "name": "sex", "levels": ["F", "M"]}
SCANS = [Scan("01"), Scan("02", "a")]
WORDS = (b"\t", b"\n", b"\r", b'"', b"n/a", b"sub-01", b"\xef\xbb\xbf", b"\x00", b"#", b"../../x")
JSON = (b"{", b"[", b"]", b"}", b",", b":", b'"', b"\\ud800", b"null", b"NaN", b"-Infinity", b"1e999", b"\xff", b'"a":')
YAML = (b"\n", b"  ", b": ", b"- ", b"[", b"{", b"&a ", b"*a", b"<<: ", b"!!python/object/apply:os.system ", b"? ",
        b"!!binary ", b"2026-11-26", b"0x", b"|", b">", b"'", b"\t", b"\xff", b"null", b".inf", b"1_0:30")  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A reader, and the contents of the file that is damaged.

    Attributes:
        file: name of that file in its folder.
        read: reads the folder.
        seeds: returns valid contents.
        tokens: words of the format.
        focus: bytes at the start that are damaged most; 0 damages all alike.
        beside: returns the other files of the folder, by name.
    """

    file: str
    read: Callable[[Path], object]
    seeds: Callable[[], list[bytes]]
    tokens: tuple[bytes, ...] = ()
    focus: int = 0
    beside: Callable[[], dict[str, bytes]] = dict


def each(*readers: Callable[[], object]) -> None:
    """Call every reader; a DualflowError of one does not keep the others from being called."""
    for reader in readers:
        with suppress(DualflowError):
            reader()


def images() -> list[bytes]:
    """Valid images of both versions, byte orders, and with each kind of affine and scaling."""
    return [
        GOOD, GOOD_TWO, PACKED, nifti(order=">"), nifti(kind=TWO, order=">"), nifti(qform_code=0), nifti(sform_code=0),
        nifti(IMAGE.astype("i2"), scl_slope=2, scl_inter=3),
    ]  # fmt: skip


def read_image(folder: Path) -> None:
    """Verify and load an image and a series."""
    path = folder / "scan.nii"
    each(lambda: verify_image(path), lambda: read_volume(path), lambda: list(open_series(path).frames({0})))


def sidecars() -> list[bytes]:
    """BIDS metadata of a PET series."""
    content = {"FrameTimesStart": [0, 60.5], "Units": "Bq/mL", "Nested": {"a": [1, -2.5e3, None, True]}}
    return [json.dumps(content, indent=indent).encode() for indent in (None, 2)]


def tables() -> list[bytes]:
    """A table of participants."""
    return [
        b"participant_id\tage\tsex\nsub-01\t71\tF\nsub-02\t64.5\tM\n",
        b'\xef\xbb\xbfparticipant_id\tage\r\nsub-01\t"7\t1"\r\nsub-02\tn/a\r\n',
    ]


def read_participants(folder: Path) -> None:
    """Read the names of columns, and the side columns of two scans."""
    each(lambda: known_columns(folder), lambda: side_values(folder, SCANS, ["age", "sex"]))


def read_levels(folder: Path) -> None:
    """Read the side column of a scan whose table has a damaged sidecar."""
    side_values(folder, SCANS[:1], ["sex"])


def read_samples(folder: Path) -> None:
    """Find the scans of a table of samples and their side columns."""
    path, study = folder / "samples.tsv", StudyConfig(**STUDY)
    files, _ = find_samples(path, folder, study, ["T1w", "FDG"])
    sample_values(path, list(files), ["age"])


@cache
def model_files() -> dict[str, bytes]:
    """The files of a bundle of the smallest model."""
    card = ModelCard(name="m", seed=0, kind="mean_image", shape=(4, 4, 4), study=STUDY, side={"columns": [AGE, SEX]})
    with TemporaryDirectory() as scratch:
        model, bundle = Path(scratch) / "model", Path(scratch) / "bundle"
        card, _ = save_model(model, BASELINES["mean_image"](card.shape, 3, 1), card)
        write_bundle(model, bundle, card, lambda _: "---\nlibrary_name: dualflow\n---\n")
        return {path.name: path.read_bytes() for path in bundle.iterdir()}


def without(*names: str) -> Callable[[], dict[str, bytes]]:
    """The files of the bundle except some."""
    return lambda: {name: content for name, content in model_files().items() if name not in names}


def cards() -> list[bytes]:
    """Cards of a baseline and of a flow."""
    baseline = json.loads(model_files()[CARD])
    flow = {**baseline, "kind": "flow", "spec": preset("dualflow").to_dict()}
    return [json.dumps(card, indent=2).encode() for card in (baseline, flow)]


def read_weights(folder: Path) -> None:
    """Load a model whose card has the hash of the damaged weights."""
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(card | {"weights_sha256": sha256(folder / WEIGHTS)}))
    load_model(folder)


def read_bundle(folder: Path) -> None:
    """Verify a bundle."""
    each(lambda: is_bundle(folder), lambda: verify_bundle(folder))


def configurations() -> list[bytes]:
    """Short configurations with nested sections."""
    sections = {
        "study": {"name": "s", "side": ["age"], "results": "out"},
        "preprocess": {
            "shape": [8, 8, 8],
            "spacing_mm": 4.0,
            "pet_resolution_mm": 8.0,
            "scanner_resolution_mm": {"a": 5.5},
        },
        "model": {"preset": "dualflow", "options": {"steps": [1, 1, 1]}},
        "split": {"validation": 0.1, "folds": "leave-one-out"},
    }
    return [yaml.safe_dump(sections).encode(), yaml.safe_dump(sections, default_flow_style=True).encode()]


def manifests() -> list[bytes]:
    """A manifest of one output."""
    content = {
        "step": "s", "version": "0.1.0", "inputs": {"a": "0" * 64}, "config": {"a": 1}, "facts": {},
        "outputs": {"table": {"path": "out.tsv", "sha256": "0" * 64}},
    }  # fmt: skip
    return [json.dumps(content).encode()]


def read_manifests(folder: Path) -> None:
    """Read and verify a folder of manifests."""
    read_manifest(folder / "step.json", inputs={"a": "0" * 64}, config={"a": 1})
    verify_manifests(folder)


def records() -> list[bytes]:
    """Records of a run, and the file that identifies it."""
    return [
        b'{"call": "metrics", "arguments": {"values": {"loss": 1.5}, "step": 3}}',
        b'{"experiment": "e", "name": "n", "tags": {"a": "b"}, "run_id": null}',
    ]


def read_queue(folder: Path) -> None:
    """Load a queue and read its record, which is refused by one of the documented errors."""
    RecordQueue.load(folder / "run")
    with suppress(OSError, ValueError, KeyError):
        read_record(folder / "run" / "run.json")


def dicom_sidecars() -> list[bytes]:
    """Sidecars as dcm2niix writes them."""
    content = {"Modality": "MR", "SeriesDescription": "t1_mprage", "ImageType": ["ORIGINAL", "PRIMARY"], "EchoTime": 1}
    return [json.dumps(content).encode()]


def read_dicom(folder: Path) -> None:
    """Recognise a folder of DICOM files, and choose a series by its sidecar."""
    is_dicom_folder(folder)
    image = folder / "scan.nii"
    each(lambda: choose_series([Series("1", "2", image, read_sidecar(image), folder)], "T1w"))


TARGETS: dict[str, Target] = {
    "image": Target("scan.nii", read_image, images, focus=360),
    "image_gzip": Target("scan.nii", read_image, lambda: [PACKED, gzip.compress(PACKED, 1)], focus=40),
    "sidecar": Target("scan.json", lambda folder: read_sidecar(folder / "scan.nii"), sidecars, JSON),
    "participants": Target("participants.tsv", read_participants, tables, WORDS),
    "levels": Target("participants.json", read_levels, sidecars, JSON,
                     beside=lambda: {"participants.tsv": tables()[0]}),
    "samples": Target("samples.tsv", read_samples, lambda: [
        b"subject\tsession\tT1w\tFDG\tage\n01\t\ta.nii\tb.nii\t71\n02\ta\ta.nii\tn/a\t64\n"
    ], WORDS),
    "card": Target(CARD, load_card, cards, JSON),
    "weights": Target(WEIGHTS, read_weights, lambda: [model_files()[WEIGHTS]], JSON, focus=300,
                      beside=without(WEIGHTS, "bundle.json", "README.md")),
    "bundle": Target("bundle.json", read_bundle, lambda: [model_files()["bundle.json"]], JSON,
                     beside=without("bundle.json")),
    "config": Target("config.yaml", lambda folder: load_config(folder / "config.yaml"), configurations, YAML),
    "manifest": Target("step.json", read_manifests, manifests, JSON),
    "queue": Target("run/run.json", read_queue, records, JSON),
    "dicom": Target("scan.json", read_dicom, dicom_sidecars, JSON, beside=lambda: {"scan.nii": GOOD}),
}  # fmt: skip
