"""DICOM folders to NIfTI images with dcm2niix, and the choice of each exam's series of one modality.

An exam becomes a scan with a label from the SHA-256 of its study UID, because names of DICOM folders and patient ids
often identify people. dcm2niix leaves names, ids, sex and dates out of the JSON sidecars, but not comments and
descriptions, into which people type anything: of sidecar and header only what is measured is kept.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import shutil
import subprocess
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from dualflow.commit import commit_bytes, commit_json
from dualflow.data.quarantine import Quarantine
from dualflow.errors import ConfigError, DataError, PairingError
from dualflow.imaging.nifti_header import check_header
from dualflow.imaging.sidecar import read_object
from dualflow.layout import Scan, bids_path, sidecar_path
from dualflow.modalities import modality
from dualflow.temporaries import scratch_folder

STEP = "dicom"
DEADLINE_S = 1800
"""Longest time that dcm2niix may take for a folder."""
MIN_SLICES = 20
"""A series with fewer voxels along an axis is a localiser or a slab."""
_PROBED_FILES = 1000
# dcm2niix's exit code if some of several series cannot be converted.
_PARTLY = 8
_CLASSES = {"anat": "MR", "perf": "MR", "pet": "PT", "ct": "CT"}
_WRITTEN = (
    "Modality", "MagneticFieldStrength", "Manufacturer", "ManufacturersModelName", "ImageType", "MRAcquisitionType",
    "EchoTime", "RepetitionTime", "InversionTime", "FlipAngle", "SliceThickness", "SeriesNumber",
    "Units", "ImageDecayCorrected", "TracerName", "TracerRadionuclide", "TimeZero", "ScanStart", "InjectionStart",
    "FrameTimesStart", "FrameDuration", "ConversionSoftware", "ConversionSoftwareVersion",
)  # fmt: skip
"""Keys of a sidecar that are written: none is typed by people, as comments, descriptions and names of places are."""
HEADER_BYTES = 348
_TEXTS = ((4, 10), (14, 18), (148, 80), (228, 24), (328, 16))
"""Start and length of the texts of a NIfTI-1 header: data_type, db_name, descrip, aux_file and intent_name."""
_T2 = r"(?<![a-z0-9])(?:ax(?:ial)?|sag(?:ittal)?|cor(?:onal)?|tra|[23]d|[a-z])?t2(?![0-9])"
"""T2 as a word, perhaps behind an orientation or a letter of the vendor; not that of iPAT2, an acceleration."""
_DARK = r"(flair|dark.?fluid|tirm.*dark)"
"""Names of sequences without the signal of fluid; those weighted by T1 are none of FLAIR."""
_NAMES = {
    "T1w": rf"(?!.*({_DARK}|{_T2}))(.*(t1|mp2?rage|bravo|spgr|tfe))",
    "T2w": rf"(?!.*({_DARK}|t2\*|t2.?star))(.*{_T2})",
    "FLAIR": rf"(?!.*(?<![a-z0-9])t1(?![0-9]))(.*{_DARK})",
}
"""Modality -> pattern of the descriptions of its series."""
_CORRECTED = re.compile(r"(_(Tilt|Eq)(_\d+)?)+$")
"""End of the name of a second image of a series, which dcm2niix resampled for a tilt or to equal spacing."""


@dataclass(frozen=True)
class Series:
    """A series as a NIfTI image.

    Attributes:
        exam: UID of the DICOM study.
        number: series number.
        image: the image.
        sidecar: content of its JSON sidecar.
        folder: the DICOM folder.
        has_gaps: whether its slices are unequally spaced, as if some were missing; the image does not show it.
    """

    exam: str
    number: str
    image: Path
    sidecar: dict[str, Any]
    folder: Path
    has_gaps: bool = False

    @property
    def description(self) -> str:
        """Description of the series, or its protocol."""
        return str(self.sidecar.get("SeriesDescription") or self.sidecar.get("ProtocolName") or "no description")

    def __str__(self) -> str:
        return f"{self.number} '{self.description[:60]}'"


def is_dicom_folder(folder: Path) -> bool:
    """Whether one of the first files below a folder is DICOM."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return any(_is_dicom(file) for file in islice(files, _PROBED_FILES))


def convert_dicom(
    folders: Sequence[Path], target: Path, source: str
) -> tuple[dict[Scan, Path], list[Quarantine], list[str]]:
    """Convert the `source` series of each exam in DICOM folders to NIfTI images.

    Args:
        folders: folders of DICOM files, nested up to nine deep.
        target: folder of the images and their sidecars.
        source: modality of the images.

    Returns:
        Scan -> its image relative to `target`; the exams without exactly one such series and the folders without any,
        with the reason; and a line each for the console alone, with the series that was taken, all series where none
        was, or dcm2niix's message.

    Raises:
        ConfigError: dcm2niix is not installed.
        DataError: no folder gives an image, because dcm2niix fails or takes longer than `DEADLINE_S`.
        PairingError: `target` has another image of the same exam.
    """
    scans, excluded, notes = {}, [], []
    failed: dict[Path, DataError] = {}
    with scratch_folder() as scratch:
        exams = defaultdict(list)
        for position, folder in enumerate(folders):
            images = scratch / str(position)
            images.mkdir()
            try:
                _run_dcm2niix(folder, images)
            except DataError as error:
                failed[folder] = error
                continue
            for series in _read_series(images, folder):
                exams[series.exam].append(series)
        if failed and not exams:
            raise next(iter(failed.values()))
        for folder, failure in failed.items():
            key = _label(str(folder.resolve())).key
            # The message may name files, and so people.
            excluded.append(Quarantine(key, STEP, "dcm2niix cannot convert this folder; the console has its message"))
            notes.append(f"{key} stands for {failure}")
        for exam, all_series in sorted(exams.items()):
            scan = _label(exam)
            try:
                series = choose_series(all_series, source)
            except DataError as error:
                excluded.append(Quarantine(scan.key, STEP, str(error)))
                notes.append(f"{scan.key} has series {_names(all_series)}")
                continue
            path = bids_path(target, scan, modality(source))
            _copy(series, path)
            scans[scan] = path.relative_to(target)
            notes.append(f"{scan.key} is series {_names([series])}")
    return scans, excluded, notes


def choose_series(series: Sequence[Series], source: str) -> Series:
    """The only 3D series of an exam that is described as `source`, or whose description names no other modality.

    Raises:
        DataError: there is none, or more than one.
    """
    volumes = [entry for entry in series if _is_volume(entry, _CLASSES[modality(source).datatype])]
    originals = [entry for entry in volumes if "DERIVED" not in entry.sidecar.get("ImageType", [])] or volumes
    described = [entry for entry in originals if _named(entry) == source]
    matches = described or [entry for entry in originals if _named(entry) is None]
    whole = [entry for entry in matches if not entry.has_gaps]
    if len(whole) == 1:
        return whole[0]
    # The reason is written to the output, where descriptions, into which people type anything, must not come.
    numbers = ", ".join(entry.number for entry in whole or matches or series)
    if whole:
        raise DataError(f"{len(whole)} series fit {source}: {numbers}; name the folder of one series")
    if matches:
        raise DataError(f"series {numbers}: slices are missing or unequally spaced; export the series again")
    raise DataError(f"none of {len(series)} series is a 3D {source} image: {numbers}; check the folder")


def _label(identity: str) -> Scan:
    """The scan of an exam's UID or a folder's path, which its label does not tell."""
    return Scan(f"dcm{hashlib.sha256(identity.encode()).hexdigest()[:8]}")


def _names(series: Sequence[Series]) -> str:
    """Numbers and descriptions of series with their folders, for the console."""
    folders = dict.fromkeys(str(entry.folder) for entry in series)
    return f"{', '.join(map(str, series))} of {' and '.join(folders)}"


def _named(series: Series) -> str | None:
    """The modality that a series' description names, or None."""
    text = series.description  # without it the protocol, which may be that of a whole exam
    return next((name for name, pattern in _NAMES.items() if re.match(pattern, text, re.IGNORECASE)), None)


def _is_volume(series: Series, image_class: str) -> bool:
    """Whether a series is one 3D image of a DICOM modality such as MR, and no phase image."""
    if series.sidecar.get("Modality", image_class) != image_class or "PHASE" in series.sidecar.get("ImageType", []):
        return False
    try:
        shape = check_header(series.image, 4, series=True).shape
    except DataError:
        return False
    return len(shape) == 3 and min(shape) >= MIN_SLICES


def _is_dicom(file: Path) -> bool:
    if file.suffix.lower() in (".dcm", ".ima") or file.name == "DICOMDIR":
        return True
    try:
        with file.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _run_dcm2niix(folder: Path, scratch: Path) -> None:
    """Convert all series of a folder to `scratch`; their names are the study UID and the series number."""
    program = shutil.which("dcm2niix")
    if program is None:
        raise ConfigError(
            f"{folder} holds DICOM files, and dcm2niix is not installed; run `pip install dcm2niix` (or `conda install "
            "-c conda-forge dcm2niix`, or `apt install dcm2niix`), or name NIfTI images"
        )
    options = ["-b", "y", "-ba", "y", "-z", "y", "-d", "9", "-f", "%k_%s"]
    try:
        done = subprocess.run(
            [program, *options, "-o", str(scratch), str(folder.resolve())],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=DEADLINE_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise DataError(
            f"{folder}: dcm2niix took longer than {DEADLINE_S} s and was stopped; name a folder with fewer series"
        ) from None
    except OSError as error:
        raise ConfigError(f"{program} cannot be run ({error.strerror}); install dcm2niix again") from error
    written = sum(1 for _ in scratch.glob("*.nii.gz"))
    if done.returncode not in (0, _PARTLY) or not written:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        message = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "no message")
        result = "did not finish" if written else "wrote no image"
        raise DataError(f"{folder}: dcm2niix {result} (exit code {done.returncode}: {message[:200]}); check the files")


def _read_series(scratch: Path, folder: Path) -> list[Series]:
    """The images that dcm2niix wrote for a DICOM folder.

    Of a series with unequally spaced slices it writes two: all slices as if they were equally spaced, and a resampled
    one without sidecar. For CT, whose spacing and tilt vary by intention, the resampled one is taken.
    """
    images = {image.name.removesuffix(".nii.gz"): image for image in sorted(scratch.glob("*.nii.gz"))}
    resampled = {parent: name for name in images if (parent := _CORRECTED.sub("", name)) != name and parent in images}
    series = []
    for name, image in images.items():
        if name in resampled.values():
            continue
        exam, _, number = name.partition("_")
        sidecar = read_object(sidecar_path(image)) if sidecar_path(image).is_file() else {}
        is_ct = sidecar.get("Modality") == "CT"
        if is_ct:
            image = images[resampled.get(name, name)]
        series.append(Series(exam, number, image, sidecar, folder, has_gaps=name in resampled and not is_ct))
    return series


def _copy(series: Series, path: Path) -> None:
    """Copy the image after its sidecar, unless an equal image is there, which thus has one; without what people typed.

    Raises:
        PairingError: another image is there.
    """
    image = _without_texts(gzip.decompress(series.image.read_bytes()))
    if (earlier := _content(path)) == image:
        return
    if earlier is not None and _without_texts(earlier) != image:
        raise PairingError(
            f"{path.name} is there from another image than series {series} of {series.folder}; choose another output "
            f"folder, or remove {path} to replace its results"
        )
    commit_json(sidecar_path(path), {key: series.sidecar[key] for key in _WRITTEN if key in series.sidecar})
    commit_bytes(path, gzip.compress(image, compresslevel=6, mtime=0))


def _content(path: Path) -> bytes | None:
    """An image of an earlier command; None if there is none, or a damaged one."""
    try:
        return gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error):
        return None


def _without_texts(image: bytes) -> bytes:
    """A NIfTI-1 image whose header has no free text, into which comments of the scanner may come."""
    header = bytearray(image[:HEADER_BYTES])
    for start, size in _TEXTS:
        header[start : start + size] = bytes(size)
    return bytes(header) + image[HEADER_BYTES:]
