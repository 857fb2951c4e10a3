"""What is wrong with one person of a study, with a whole study, or with a table of samples; and the reason to be given.

Every one of `SUBJECTS` can be put into one study; a study of `STUDIES` or `TABLES` cannot be used at all.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bad_files import SHAPE, nifti

PEOPLE = ("good1", "good2", "good3")
T1W, FDG = "anat/{key}_T1w.nii", "pet/{key}_trc-FDG_pet.nii"


def an_image(text: str) -> bytes:
    """A sound image of its own for each text."""
    draw = np.random.default_rng(list(os.fsencode(text)))
    return nifti(draw.normal(100, 10, SHAPE).astype(np.float32))


def add(root: Path, label: str, *names: str, content: bytes | None = None, session: str = "") -> list[Path]:
    """Write images of a person; `{key}` in a name stands for the scan."""
    key, folder = f"sub-{label}", root / f"sub-{label}"
    if session:
        key, folder = f"{key}_ses-{session}", folder / f"ses-{session}"
    paths = [folder / name.format(key=key) for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(an_image(f"{key}{path.name}") if content is None else content)
    return paths


def write_study(root: Path) -> None:
    """A sound study of three people; one also has a scan with another tracer."""
    root.mkdir(parents=True)
    (root / "dataset_description.json").write_text('{"Name": "bad", "BIDSVersion": "1.10.0"}')
    (root / "participants.tsv").write_text("participant_id\tage\n")
    for number, label in enumerate(PEOPLE):
        add(root, label, T1W, FDG)
        tell(root, label, str(60 + number))
    add(root, "good1", "pet/{key}_trc-AV45_pet.nii")


def tell(root: Path, label: str, age: str) -> None:
    """Add a row to participants.tsv."""
    with (root / "participants.tsv").open("a", encoding="utf-8") as stream:
        stream.write(f"sub-{label}\t{age}\n")


def instead(root: Path, label: str, place: Callable[[Path], object]) -> None:
    """Something else in the place of a person's T1w."""
    add(root, label, FDG)
    path = root / f"sub-{label}" / T1W.format(key=f"sub-{label}")
    path.parent.mkdir(parents=True)
    place(path)


def outside(root: Path, name: str, label: str) -> Path:
    """A person's folder beside the dataset."""
    folder = root.parent / f"{root.name}-{name}"
    add(folder, label, T1W)
    return folder / f"sub-{label}"


@dataclass(frozen=True)
class Trouble:
    """What is wrong with one person.

    Attributes:
        label: of the person.
        words: what the reason must contain (a regular expression).
        make: puts the person into the study at a folder.
        key: of the scan set aside, where it is not `sub-LABEL`.
    """

    label: str
    words: str
    make: Callable[[Path, str], object]
    key: str = ""

    @property
    def scan(self) -> str:
        """Key of the scan that is set aside."""
        return self.key or f"sub-{self.label}"


def link_file(root: Path, label: str) -> None:
    instead(root, label, lambda path: path.symlink_to(next(outside(root, "file", label).glob("anat/*"))))


def link_folder(root: Path, label: str) -> None:
    (root / f"sub-{label}").mkdir()
    (root / f"sub-{label}" / "anat").symlink_to(outside(root, "folder", label) / "anat")


def link_person(root: Path, label: str) -> None:
    (root / f"sub-{label}").symlink_to(outside(root, "person", label))


def with_age(*ages: str) -> Callable[[Path, str], None]:
    def make(root: Path, label: str) -> None:
        add(root, label, T1W, FDG)
        for age in ages:
            tell(root, label, age)

    return make


def with_visits(content: bytes) -> Callable[[Path, str], None]:
    def make(root: Path, label: str) -> None:
        add(root, label, T1W, session="1")
        (root / f"sub-{label}" / f"sub-{label}_sessions.tsv").write_bytes(content)

    return make


def named(*names: str) -> Callable[[Path, str], object]:
    return lambda root, label: add(root, label, *names)


def placing(place: Callable[[Path], object]) -> Callable[[Path, str], object]:
    return lambda root, label: instead(root, label, place)


SUBJECTS = [
    Trouble("NoMr", "FDG but no T1w", named(FDG)),
    Trouble("NoMrThatDay", "FDG but no T1w", lambda root, label: [
        add(root, label, FDG, session="2"), add(root, label, T1W, session="1")
    ], key="sub-NoMrThatDay_ses-2"),
    Trouble("TwoRuns", "2 files fit T1w", named("anat/{key}_run-1_T1w.nii", "anat/{key}_run-2_T1w.nii")),
    Trouble("TwoEndings", "keep one", named(T1W, "anat/{key}_T1w.nii.gz")),
    Trouble("TwoPets", "2 files fit FDG", named(T1W, FDG, "pet/{key}_trc-18FFDG_pet.nii")),
    Trouble("NoTracer", "names no tracer", named(T1W, "pet/{key}_pet.nii")),
    Trouble("AgeInWords", "expected a number", with_age("seventy")),
    Trouble("AgeInfinite", "expected a number", with_age("inf")),
    Trouble("TwoRows", "has 2 rows", with_age("70", "71")),
    Trouble("VisitsTwice", "has 2 rows", with_visits(b"session_id\tage\nses-1\t70\nses-1\t71\n"),
            "sub-VisitsTwice_ses-1"),
    Trouble("VisitsCut", "not a table|no column", with_visits(b""), "sub-VisitsCut_ses-1"),
    Trouble("VisitsBinary", "not a table", with_visits(b"\xff\xfe\0"), "sub-VisitsBinary_ses-1"),
    Trouble("VisitsNoId", "no column 'session_id'", with_visits(b"visit\tage\n1\t70\n"), "sub-VisitsNoId_ses-1"),
    Trouble("LinkOut", "leads out of the dataset", link_file),
    Trouble("FolderOut", "leads out of the dataset", link_folder),
    Trouble("PersonOut", "leads out of the dataset", link_person),
    Trouble("LinkDead", "not there", placing(lambda path: path.symlink_to("gone.nii"))),
    Trouble("LinkLoop", "cannot be looked up|not there", placing(lambda path: path.symlink_to(path.name))),
    Trouble("Folder", "expected a regular file", placing(Path.mkdir)),
    Trouble("Pipe", "expected a regular file", placing(os.mkfifo)),
    Trouble("Device", "leads out of the dataset", placing(lambda path: path.symlink_to("/dev/zero"))),
    Trouble("OtherName", "make name and folder agree", named("anat/sub-someone_T1w.nii")),
    Trouble("OtherVisit", "make name and folder agree", named("anat/{key}_ses-1_T1w.nii")),
    Trouble("a b", "is not of the form", named(T1W)),
    Trouble("a_b", "is not of the form", named(T1W)),
    Trouble("$(touch x)", "is not of the form", named(T1W)),
    Trouble("Jürgen", "is not of the form", named(T1W)),
    Trouble("line\nend", "is not of the form", named(T1W), key="sub-line\\nend"),
    Trouble(os.fsdecode(b"\xff"), "is not of the form", named(T1W), key="sub-\\udcff"),
    Trouble("Bytes", "not UTF-8", named(os.fsdecode(b"anat/{key}_acq-\xff_T1w.nii"))),
    Trouble("Copy", "same voxels", lambda root, label: add(
        root, label, T1W, content=(root / "sub-good1/anat/sub-good1_T1w.nii").read_bytes()
    )),
]  # fmt: skip
ALSO_REFUSED = {"sub-good1": "same voxels"}
"""Scans that are set aside because of `SUBJECTS`: whose of two people the same voxels are, no one knows."""
SOUND_NAMES = ("anat/{key}_acq-a b_T1w.nii", "anat/{key}_acq-脑_T1w.nii", "anat/{key}_acq-$(touch x);_T1w.nii",
               "anat/{key}_acq-'\"_T1w.nii")  # fmt: skip


def table(content: bytes) -> Callable[[Path], object]:
    return lambda root: (root / "participants.tsv").write_bytes(content)


def explained(content: bytes) -> Callable[[Path], object]:
    return lambda root: (root / "participants.json").write_bytes(content)


def without_table(place: Callable[[Path], object]) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        (root / "participants.tsv").unlink()
        place(root / "participants.tsv")

    return make


def huge(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(4 << 30)


def emptied(root: Path) -> None:
    for path in root.glob("sub-*"):
        path.rename(root / path.name.replace("sub-", "person-"))


def truncated(root: Path) -> None:
    """No image is left."""
    for path in root.glob("sub-*/*/*"):
        path.unlink()


STUDIES = {
    "no_folder": ("no such folder", lambda root: root.rename(root.with_name("moved"))),
    "a_file": ("no such folder", lambda root: [root.rename(root.with_name("away")), root.write_bytes(b"")]),
    "no_people": ("holds no sub-", emptied),
    "no_images": ("no usable T1w", truncated),
    "people_empty": ("not a table", table(b"")),
    "people_without_rows": ("has no rows", table(b"participant_id\tage\n")),
    "people_without_id": ("no column 'participant_id'", table(b"subject\tage\n1\t70\n")),
    "people_without_age": ("no column 'age'", table(b"participant_id\tsex\nsub-good1\tF\n")),
    "people_ragged": ("not a table|more cells", table(b"participant_id\tage\nsub-good1\t70\nsub-good2\t71\t9\t9\n")),
    "people_binary": ("not a table", table(b"\xff\xfe" + bytes(range(256)))),
    "people_utf_16": ("not a table", table("participant_id\tage\nsub-good1\t70\n".encode("utf-16"))),
    "people_missing": ("is missing", without_table(lambda path: None)),
    "people_pipe": ("is missing", without_table(os.mkfifo)),
    "people_folder": ("is missing", without_table(Path.mkdir)),
    "people_huge": ("MiB, expected a table", without_table(huge)),
    "people_wide": ("12000001 columns", table(b"\t" * 12_000_000)),
    "people_long": ("expected a table of at most", table(b"participant_id\tage\n" + b"\t\n" * 5_000_000)),
    "people_json_cut": ("is not JSON", explained(b'{"age": ')),
    "people_json_list": ("expected a JSON object", explained(b"[]")),
    "people_json_deep": ("nested too deeply", explained(b"[" * 200_000)),
}
"""Name -> reason and what is done to a sound study so that none of it can be used."""
TABLES = {
    "samples_empty": ("not a table", b""),
    "samples_binary": ("not a table", b"\xff\xfe\0\1"),
    "samples_without_rows": ("no rows", b"subject\tT1w\tFDG\n"),
    "samples_without_subject": ("column 'subject'", b"person\tT1w\tFDG\n1\ta\tb\n"),
    "samples_unnamed": ("has no subject", b"subject\tT1w\tFDG\n1\ta\tb\nn/a\tc\td\n"),
    "samples_without_source": ("'T1w' or 'source'", b"subject\tFDG\n1\tb\n"),
    "samples_twice": ("'T1w' or 'source'", b"subject\tT1w\tsource\tFDG\n1\ta\ta\tb\n"),
    "samples_missing_files": ("not there", b"subject\tT1w\tFDG\n1\tgone.nii\tgone.nii\n"),
    "samples_outside": ("leads out", b"subject\tT1w\tFDG\n1\t../x.nii\t/etc/passwd\n"),
    "samples_label": ("not a BIDS label", b"subject\tT1w\tFDG\na b\tgone.nii\tgone.nii\n"),
}
"""Name -> reason and a table of samples of which nothing can be used."""
