"""Broken subjects, studies and sample tables, with the expected reason of each.

One study can hold all of `SUBJECTS`. The studies of `STUDIES` and the tables of `TABLES` are unusable as a whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bad_bytes import SHAPE, nifti

LABELS = ("good1", "good2", "good3")
T1W, FDG = "anat/{key}_T1w.nii", "pet/{key}_trc-FDG_pet.nii"


def image_of(text: str) -> bytes:
    """A valid image, different for each text."""
    rng = np.random.default_rng(list(os.fsencode(text)))
    return nifti(rng.normal(100, 10, SHAPE).astype(np.float32))


def add(root: Path, label: str, *names: str, content: bytes | None = None, session: str = "") -> list[Path]:
    """Write images of a subject; `{key}` in a name stands for the scan."""
    key, folder = f"sub-{label}", root / f"sub-{label}"
    if session:
        key, folder = f"{key}_ses-{session}", folder / f"ses-{session}"
    paths = [folder / name.format(key=key) for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_of(f"{key}{path.name}") if content is None else content)
    return paths


def write_study(root: Path) -> None:
    """Write a valid study of three subjects, one of whom also has a scan with another tracer."""
    root.mkdir(parents=True)
    (root / "dataset_description.json").write_text('{"Name": "bad", "BIDSVersion": "1.10.0"}')
    (root / "participants.tsv").write_text("participant_id\tage\n")
    for number, label in enumerate(LABELS):
        add(root, label, T1W, FDG)
        add_row(root, label, str(60 + number))
    add(root, "good1", "pet/{key}_trc-AV45_pet.nii")


def add_row(root: Path, label: str, age: str) -> None:
    """Add a row to participants.tsv."""
    with (root / "participants.tsv").open("a", encoding="utf-8") as stream:
        stream.write(f"sub-{label}\t{age}\n")


def replace_t1w(root: Path, label: str, create: Callable[[Path], object]) -> None:
    """Add a subject and call `create` with the path of their T1w image."""
    add(root, label, FDG)
    path = root / f"sub-{label}" / T1W.format(key=f"sub-{label}")
    path.parent.mkdir(parents=True)
    create(path)


def outside(root: Path, name: str, label: str) -> Path:
    """Write a subject's folder beside the dataset, and return it."""
    folder = root.parent / f"{root.name}-{name}"
    add(folder, label, T1W)
    return folder / f"sub-{label}"


@dataclass(frozen=True)
class BadSubject:
    """A broken subject.

    Attributes:
        label: label of the subject.
        words: regular expression that the reason must match.
        make: adds the subject to the study in a folder.
        key: key of the excluded scan, if it is not `sub-LABEL`.
    """

    label: str
    words: str
    make: Callable[[Path, str], object]
    key: str = ""

    @property
    def scan(self) -> str:
        """Key of the excluded scan."""
        return self.key or f"sub-{self.label}"


def link_file(root: Path, label: str) -> None:
    replace_t1w(root, label, lambda path: path.symlink_to(next(outside(root, "file", label).glob("anat/*"))))


def link_folder(root: Path, label: str) -> None:
    (root / f"sub-{label}").mkdir()
    (root / f"sub-{label}" / "anat").symlink_to(outside(root, "folder", label) / "anat")


def link_subject(root: Path, label: str) -> None:
    (root / f"sub-{label}").symlink_to(outside(root, "subject", label))


def with_age(*ages: str) -> Callable[[Path, str], None]:
    def make(root: Path, label: str) -> None:
        add(root, label, T1W, FDG)
        for age in ages:
            add_row(root, label, age)

    return make


def with_sessions(content: bytes) -> Callable[[Path, str], None]:
    def make(root: Path, label: str) -> None:
        add(root, label, T1W, session="1")
        (root / f"sub-{label}" / f"sub-{label}_sessions.tsv").write_bytes(content)

    return make


def named(*names: str) -> Callable[[Path, str], object]:
    return lambda root, label: add(root, label, *names)


def with_t1w(create: Callable[[Path], object]) -> Callable[[Path, str], object]:
    return lambda root, label: replace_t1w(root, label, create)


SUBJECTS = [
    BadSubject("NoMrThatDay", "FDG but no T1w", lambda root, label: [
        add(root, label, FDG, session="2"), add(root, label, T1W, session="1")
    ], key="sub-NoMrThatDay_ses-2"),
    BadSubject("TwoRuns", "2 files fit T1w", named("anat/{key}_run-1_T1w.nii", "anat/{key}_run-2_T1w.nii")),
    BadSubject("TwoEndings", "keep one", named(T1W, "anat/{key}_T1w.nii.gz")),
    BadSubject("AgeInWords", "expected a number", with_age("seventy")),
    BadSubject("AgeInfinite", "expected a number", with_age("inf")),
    BadSubject("TwoRows", "has 2 rows", with_age("70", "71")),
    BadSubject("SessionsTwice", "has 2 rows", with_sessions(b"session_id\tage\nses-1\t70\nses-1\t71\n"),
            "sub-SessionsTwice_ses-1"),
    BadSubject("SessionsEmpty", "not a table|no column", with_sessions(b""), "sub-SessionsEmpty_ses-1"),
    BadSubject("SessionsBinary", "not a table", with_sessions(b"\xff\xfe\0"), "sub-SessionsBinary_ses-1"),
    BadSubject("NoSessionId", "no column 'session_id'", with_sessions(b"visit\tage\n1\t70\n"), "sub-NoSessionId_ses-1"),
    BadSubject("LinkOut", "leads out of the dataset", link_file),
    BadSubject("FolderOut", "leads out of the dataset", link_folder),
    BadSubject("PersonOut", "leads out of the dataset", link_subject),
    BadSubject("LinkDead", "not there", with_t1w(lambda path: path.symlink_to("gone.nii"))),
    BadSubject("LinkLoop", "cannot be looked up|not there", with_t1w(lambda path: path.symlink_to(path.name))),
    BadSubject("Folder", "expected a regular file", with_t1w(Path.mkdir)),
    BadSubject("Pipe", "expected a regular file", with_t1w(os.mkfifo)),
    BadSubject("Device", "leads out of the dataset", with_t1w(lambda path: path.symlink_to("/dev/zero"))),
    BadSubject("OtherName", "make name and folder agree", named("anat/sub-someone_T1w.nii")),
    BadSubject("OtherVisit", "make name and folder agree", named("anat/{key}_ses-1_T1w.nii")),
    BadSubject("a b", "is not of the form", named(T1W)),
    BadSubject("a_b", "is not of the form", named(T1W)),
    BadSubject("$(touch x)", "is not of the form", named(T1W)),
    BadSubject("Jürgen", "is not of the form", named(T1W)),
    BadSubject("line\nend", "is not of the form", named(T1W), key="sub-line\\nend"),
    BadSubject(os.fsdecode(b"\xff"), "is not of the form", named(T1W), key="sub-\\udcff"),
    BadSubject("Bytes", "not UTF-8", named(os.fsdecode(b"anat/{key}_acq-\xff_T1w.nii"))),
    BadSubject("Copy", "same voxels", lambda root, label: add(
        root, label, T1W, content=(root / "sub-good1/anat/sub-good1_T1w.nii").read_bytes()
    )),
]  # fmt: skip
UNUSED_TARGETS = [
    BadSubject("TwoPets", "2 files fit FDG", named(T1W, FDG, "pet/{key}_trc-18FFDG_pet.nii")),
    BadSubject("NoTracer", "names no tracer", named(T1W, "pet/{key}_pet.nii")),
]
"""Subjects whose target cannot be told apart or recognised; their scans are to convert."""
ALSO_REFUSED = {"sub-good1": "same voxels"}
"""Excluded scans of the valid study. The voxels of sub-Copy may belong to either subject, so both are excluded."""
SOUND_NAMES = ("anat/{key}_acq-a b_T1w.nii", "anat/{key}_acq-脑_T1w.nii", "anat/{key}_acq-$(touch x);_T1w.nii",
               "anat/{key}_acq-'\"_T1w.nii")  # fmt: skip


def table(content: bytes) -> Callable[[Path], object]:
    return lambda root: (root / "participants.tsv").write_bytes(content)


def described(content: bytes) -> Callable[[Path], object]:
    return lambda root: (root / "participants.json").write_bytes(content)


def without_table(create: Callable[[Path], object]) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        (root / "participants.tsv").unlink()
        create(root / "participants.tsv")

    return make


def huge(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(4 << 30)


def without_subjects(root: Path) -> None:
    for path in root.glob("sub-*"):
        path.rename(root / path.name.replace("sub-", "subject-"))


def without_images(root: Path) -> None:
    """Remove all images."""
    for path in root.glob("sub-*/*/*"):
        path.unlink()


STUDIES = {
    "no_folder": (
        "study.bids = .*: does not exist, expected a folder",
        lambda root: root.rename(root.with_name("moved")),
    ),
    "a_file": (
        "study.bids = .*: is not a folder, expected a folder",
        lambda root: [root.rename(root.with_name("moved")), root.write_bytes(b"")],
    ),
    "no_subjects": ("holds no sub-", without_subjects),
    "no_images": ("no usable T1w", without_images),
    "participants_empty": ("not a table", table(b"")),
    "participants_without_rows": ("has no rows", table(b"participant_id\tage\n")),
    "participants_without_id": ("no column 'participant_id'", table(b"subject\tage\n1\t70\n")),
    "participants_without_age": ("no column 'age'", table(b"participant_id\tsex\nsub-good1\tF\n")),
    "participants_ragged": (
        "not a table|more cells",
        table(b"participant_id\tage\nsub-good1\t70\nsub-good2\t71\t9\t9\n"),
    ),
    "participants_binary": ("not a table", table(b"\xff\xfe" + bytes(range(256)))),
    "participants_utf_16": ("not a table", table("participant_id\tage\nsub-good1\t70\n".encode("utf-16"))),
    "participants_missing": ("is missing", without_table(lambda path: None)),
    "participants_pipe": ("is missing", without_table(os.mkfifo)),
    "participants_folder": ("is missing", without_table(Path.mkdir)),
    "participants_huge": ("MiB, expected a table", without_table(huge)),
    "participants_wide": ("12000001 columns", table(b"\t" * 12_000_000)),
    "participants_long": ("expected a table of at most", table(b"participant_id\tage\n" + b"\t\n" * 5_000_000)),
    "participants_json_cut": ("is not JSON", described(b'{"age": ')),
    "participants_json_list": ("expected a JSON object", described(b"[]")),
    "participants_json_deep": ("nested too deeply", described(b"[" * 200_000)),
}
"""Name -> expected reason, and a function that makes a valid study unusable."""
REFUSED_WITH_THE_CONFIGURATION = ("no_folder", "a_file")
"""Studies that are refused when the configuration is read."""
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
"""Name -> expected reason, and an unusable table of samples."""
