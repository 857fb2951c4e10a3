"""Corpus of broken images and sidecars, with the expected error of each: `python tests/support/bad_files.py OUT`.

The reader must refuse the images of `DEFECTS` and the sidecars of `SIDECARS`. It must read the unusual but valid images
of `SOUND`. Broken studies are in `bad_studies.py`.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bad_bytes import (
    GOOD,
    GOOD_TWO,
    IMAGE,
    INF,
    MAGIC,
    NAN,
    PACKED,
    SHAPE,
    TWO,
    cuts,
    dims,
    flips,
    inflating,
    nifti,
    of_each,
    packed,
    placed,
    put,
    sized,
    spaced,
    with_name,
    with_voxels,
)

from dualflow.errors import DataError, GeometryError, HeaderError, IntensityError

Make = Callable[[Path], Iterator[Path]]
Content = bytes | Iterable[bytes]


@dataclass(frozen=True)
class Defect:
    """One way in which a file can be broken.

    Attributes:
        name: name of the defect, and of the folder of its files.
        error: exception that the reader must raise.
        words: regular expression that the message must match.
        make: writes the files into an empty folder and yields their paths.
    """

    name: str
    error: type[DataError]
    words: str
    make: Make


def files(*contents: Content) -> Make:
    """Write one file for each content."""

    def make(folder: Path) -> Iterator[Path]:
        flat = [item for content in contents for item in ([content] if isinstance(content, bytes) else content)]
        for number, content in enumerate(flat):
            path = folder / f"{number:02d}.nii{'.gz' if content[:2] == MAGIC else ''}"
            path.write_bytes(content)
            yield path

    return make


def both(*contents: Content) -> Make:
    """Write each content twice, plain and compressed."""

    def make(folder: Path) -> Iterator[Path]:
        for path in files(*contents)(folder):
            yield path
            path.with_suffix(".nii.gz").write_bytes(packed(path.read_bytes()))
            yield path.with_suffix(".nii.gz")

    return make


def with_hole(start: bytes, size: int) -> Make:
    """Write a sparse file of `size` bytes that begins with `start`."""

    def make(folder: Path) -> Iterator[Path]:
        path = folder / "sparse.nii"
        with path.open("wb") as stream:
            stream.write(start)
            stream.truncate(size)
        yield path

    return make


def special(*makes: Callable[[Path], object], names: tuple[str, ...] = ("scan.nii", "scan.nii.gz")) -> Make:
    """Call each of `makes` with a path of each of `names`, where the reader expects a file."""

    def make(folder: Path) -> Iterator[Path]:
        for number, create in enumerate(makes):
            (folder / str(number)).mkdir()
            for name in names:
                create(folder / str(number) / name)
                yield folder / str(number) / name

    return make


def nothing(path: Path) -> None:
    """Create no file."""


def loop(path: Path) -> None:
    other = path.with_name(f"other-{path.name}")
    path.symlink_to(other)
    other.symlink_to(path)


def locked(path: Path) -> None:
    path.write_bytes(GOOD)
    path.chmod(0)


def beside(*contents: Content) -> Make:
    """Write a valid image beside each JSON file."""

    def make(folder: Path) -> Iterator[Path]:
        for path in files(*contents)(folder):
            path.rename(path.with_suffix(".json"))
            path.write_bytes(GOOD)
            yield path

    return make


def huge_json(folder: Path) -> Iterator[Path]:
    (folder / "scan.nii").write_bytes(GOOD)
    with (folder / "scan.json").open("wb") as stream:
        stream.truncate(4 << 30)
    yield folder / "scan.nii"


NOISE = [np.random.default_rng(1).bytes(size) for size in (5, 348, 352, 9000)]
TEXTS = [b"participant_id\tage\nsub-01\t71\n" * 20, b"hello", b"abc"]
TYPES = [np.dtype(code) for code in ("u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")]
PIXDIM_ONLY = {"sform_code": 0}
END = len(PACKED)
ODD_NAMES = ("a b.nii", "naïve-脑.nii", "$(touch x);.nii", "line\nend.nii", "tab\tt.nii", "\x1b[31m.nii", "-rf.nii",
             "'\".nii", os.fsdecode(b"\xff\xfe.nii"))  # fmt: skip

CONTAINERS = [
    Defect("empty", HeaderError, "is empty", files(b"")),
    Defect("empty_gzip", HeaderError, "empty gzip stream", files(packed(b""))),
    Defect("text", HeaderError, "is text", both(TEXTS)),
    Defect("noise", HeaderError, "sizeof_hdr", both(NOISE)),
    Defect("dicom", HeaderError, "DICOM.*dcm2niix", both(bytes(128) + b"DICM" + bytes(900))),
    Defect("zip", HeaderError, "zip archive", files(b"PK\x03\x04" + bytes(900))),
    Defect("bzip2", HeaderError, "bzip2", files(b"BZh9" + bytes(900))),
    Defect("xz", HeaderError, "an xz file", files(b"\xfd7zXZ\0" + bytes(900))),
    Defect("zstandard", HeaderError, "zstandard", files(b"\x28\xb5\x2f\xfd" + bytes(900))),
    Defect("minc", HeaderError, "MINC", both(b"\x89HDF\r\n\x1a\n" + bytes(900))),
    Defect("gzip_twice", HeaderError, "gzip file inside another", files(packed(PACKED))),
    Defect("git_lfs", HeaderError, "git lfs pull", files(b"version https://git-lfs.github.com/spec/v1\noid x\n")),
    Defect("git_annex", HeaderError, "datalad get", files(b"/annex/objects/MD5E-s1--0.nii.gz\n")),
    Defect("analyze", HeaderError, "magic is b''", both(nifti(magic=b""), nifti(order=">", magic=b""))),
    Defect("two_files", HeaderError, "magic is b'ni", both(nifti(magic=b"ni1"), nifti(kind=TWO, magic=b"ni2"))),
    Defect("magic", HeaderError, "expected b'n", both(of_each("magic", b"n+3", b"N+1", b"n 1", b"n+1x", b"n+2"))),
    Defect("text_mode", HeaderError, "again as binary", both(nifti(kind=TWO, eol_check=(10, 26, 10, 0)))),
    Defect("sizeof_hdr", HeaderError, "sizeof_hdr", both(of_each("sizeof_hdr", 0, -1, 347, 349))),
    Defect("cut_header", HeaderError, "NIfTI header of 348", both(cuts(GOOD, (2, 3, 4, 40, 200, 344, 347)))),
    Defect("cut_header_2", HeaderError, "NIfTI header of 540", both(cuts(GOOD_TWO, (4, 100, 348, 539)))),
]
STREAMS = [
    Defect("cut_gzip", HeaderError, "too early", files(cuts(PACKED, range(12, END, END // 40)))),
    Defect("cut_gzip_end", HeaderError, "too early", files(cuts(PACKED, range(END - 8, END)))),
    Defect("gzip_length", HeaderError, "damaged", files(flips(PACKED, range(END - 4, END)))),
    Defect("gzip_body", HeaderError, "damaged|too early|ends before",
           files(flips(PACKED, [*range(40, END - 8, END // 24), *range(END - 8, END - 4)], bits=0x55))),
    Defect("gzip_method", HeaderError, "damaged", files([put(PACKED, 2, bytes([code])) for code in (0, 7, 255)])),
    Defect("gzip_tail", HeaderError, "damaged|too early", files(PACKED + b"more", PACKED + GOOD, PACKED + MAGIC)),
    Defect("gzip_padding", HeaderError, "has 41943040 bytes, more than", with_hole(PACKED, 40 << 20)),
    Defect("gzip_members", HeaderError, "65 members hold only 0 bytes", files(packed(b"") * 200_000 + PACKED)),
    Defect("gzip_members_behind", HeaderError, "members hold only", files(PACKED + packed(b"") * 200_000)),
    Defect("gzip_members_of_a_byte", HeaderError, "members hold only",
           files(b"".join(packed(GOOD[at : at + 1]) for at in range(len(GOOD))))),
    Defect("gzip_without_voxels", HeaderError, "hold no voxels", files(
        with_name(4 << 20, PACKED), MAGIC + b"\x08" + bytes(7) + b"\0\0\0\xff\xff" * (1 << 20) + PACKED[10:]
    )),
    Defect("cut", HeaderError, "cut short", files(cuts(GOOD, range(352, len(GOOD), len(GOOD) // 12)))),
    Defect("cut_last_byte", HeaderError, "cut short", files(GOOD[:-1], GOOD_TWO[:-1], nifti(order=">")[:-1])),
    Defect("cut_inside", HeaderError, "ends before", files([packed(cut) for cut in cuts(GOOD, (352, 900, -1))])),
    Defect("too_long", HeaderError, "holds more", with_hole(GOOD, 40 << 20)),
    Defect("bomb_behind_small_header", HeaderError, "unpacks to more",
           files(inflating(64, GOOD), inflating(900, GOOD), inflating(64, GOOD_TWO))),
    Defect("bomb_as_declared", HeaderError, "no scan is that empty", files(
        inflating(600, sized((512, 512, 600))[0][:352]),
        inflating(1000, sized((1024, 1024, 125), datatype=64)[0][:352]),
    )),
]  # fmt: skip
CLAIMS = [
    Defect("huge", HeaderError, "GiB, expected at most",
           both(sized((30000, 30000, 30000), (32767, 32767, 2), (2, 32767, 32767), (9000, 9000, 9000, 1)))),
    Defect("huge_2", HeaderError, "GiB, expected at most", both(sized(
        (2**62, 2, 2), (2**21, 2**21, 2**22), (2**32, 2**32, 2), (2**63 - 1, 2**63 - 1, 9), kind=TWO
    ))),
    Defect("hollow", HeaderError, "too few for the", both(sized((500, 1000, 500), (600, 600, 700)))),
    Defect("negative_size", HeaderError, "positive length", both(sized((-9, 8, 7), (9, -8, 7), (9, 8, -7)))),
    Defect("zero_size", HeaderError, "positive length", both(sized((0, 8, 7), (9, 0, 7), (9, 8, 0)))),
    Defect("axes", HeaderError, "1 to 7 axes", both([nifti(dim=dims(count, *SHAPE)) for count in (0, -1, 8, 99)])),
    Defect("flat", HeaderError, "several slices",
           both(sized((9, 56), (504,), (72, 7, 1), (1, 72, 7), (9, 1, 56)))),
    Defect("frames", HeaderError, "average the frames", both(sized((9, 4, 7, 2)))),
    Defect("five_axes", HeaderError, "average the frames", both(sized((3, 4, 7, 2, 3), (9, 4, 7, 1, 2)))),
    Defect("complex", HeaderError, "complex", both(of_each("datatype", 32, 1792, 2048))),
    Defect("colour", HeaderError, "RGB", both(of_each("datatype", 128, 2304))),
    Defect("bits", HeaderError, "binary", both(put(GOOD, 70, struct.pack("<2h", 1, 1)))),
    Defect("float128", HeaderError, "float128", both(put(GOOD, 70, struct.pack("<2h", 1536, 128)))),
    Defect("datatype", HeaderError, "datatype",
           both([put(GOOD, 70, struct.pack("<h", code)) for code in (0, 3, 255, 1234, -4)])),
    Defect("vox_offset", HeaderError, "vox_offset", both(of_each("vox_offset", 0, 348, -352, NAN, INF, 352.5, 1e12))),
    Defect("huge_extension", HeaderError, "vox_offset", with_hole(nifti(vox_offset=20 << 20), 21 << 20)),
    Defect("mixed_byte_order", HeaderError, "byte order is mixed",
           both(put(GOOD, 0, struct.pack(">i", 348)), put(GOOD, 40, struct.pack(">8h", *dims(3, *SHAPE))))),
]  # fmt: skip
PLACES = [
    Defect("zero_spacing", GeometryError, "positive numbers", both(spaced((0, 2, 3), (2, 0, 3), (2, 2, 0)))),
    Defect("negative_spacing", GeometryError, "positive numbers", both(spaced((-2, 2, 3), (2, -2, 3), (2, 2, -3)))),
    Defect("spacing_not_finite", GeometryError, "positive numbers", both(spaced((NAN, 2, 3), (2, INF, 3)))),
    Defect("spacing_of_no_scan", GeometryError, "0.01 to 100 mm",
           both(spaced((0.002, 0.002, 0.003), (2000, 2000, 3000), **PIXDIM_ONLY))),
    Defect("unit", GeometryError, "length unit", both(of_each("xyzt_units", 1, 3, 5, 7))),
    Defect("codes", GeometryError, "0 to 5", both(of_each("qform_code", -1, 6, 255), of_each("sform_code", -1, 6))),
    Defect("no_code", GeometryError, "both 0", both(nifti(qform_code=0, sform_code=0),
                                                     nifti(qform_code=0, sform_code=0, kind=TWO))),
    Defect("singular", GeometryError, "singular", both(placed(
        [(0, 0, 0)], [(1, 1, 0)], [(2, 2, 0)], [(0, 1, 2), (1, 1, 0)], [(0, 0, 0), (1, 1, 0), (2, 2, 0)]
    ))),
    Defect("sheared", GeometryError, "sheared",
           both(placed([(0, 1, 1)], [(0, 2, 0.5)], [(1, 2, -1)], [(1, 0, 0.01)]))),
    Defect("sform_not_finite", GeometryError, "sform: the affine holds",
           both(placed([(0, 0, NAN)], [(1, 2, NAN)], [(2, 3, INF)], [(0, 3, -INF)]))),
    Defect("far_away", GeometryError, "affine reaches", both(placed([(0, 3, 1e6)], [(1, 3, -1e30)], [(2, 2, 1e20)]))),
    Defect("sform_against_pixdim", GeometryError, "by pixdim and",
           both(spaced((1, 1, 1), (2, 2, 3.3), qform_code=0))),
    Defect("quaternion", GeometryError, "no longer than 1", both(of_each("quatern_b", 1.5, -2, 1e30, **PIXDIM_ONLY))),
    Defect("qform_not_finite", GeometryError, "qform: the affine holds",
           both(of_each("quatern_c", NAN, **PIXDIM_ONLY), of_each("qoffset_x", NAN, INF, **PIXDIM_ONLY))),
    Defect("handedness", GeometryError, "left from right",
           both(spaced((2, 2, 2, 3), (-3, 2, 2, 3), (0.5, 2, 2, 3), (NAN, 2, 2, 3)))),
    Defect("forms_shifted", GeometryError, "apart", both(of_each("qoffset_x", -7.8, 5), of_each("qoffset_z", 900))),
    Defect("forms_turned", GeometryError, "apart", both(of_each("quatern_b", 0.05, 0.7, 1))),
    Defect("forms_scaled", GeometryError, "apart", both(spaced((2.2, 2, 3), (2, 2, 2)))),
    Defect("forms_mirrored", GeometryError, "apart, one mirrored",
           both(placed([(0, 0, -2)], [(2, 2, -3)], qform_code=1), spaced((-1, 2, 2, 3)))),
]  # fmt: skip
VOXELS = [
    Defect("nan", IntensityError, "are NaN", both(
        with_voxels(NAN), with_voxels(NAN, at=(0, 0, 0)), with_voxels(NAN, at=(8, 7, 6), dtype=np.float64),
        put(GOOD, 400, b"\x01\x00\x80\x7f"), nifti(IMAGE * np.float32(NAN)),
    )),
    Defect("infinite", IntensityError, "are infinite", both(with_voxels(INF, -INF))),
    Defect("all_zero", IntensityError, "every voxel is 0", both([nifti(np.zeros(SHAPE, dtype)) for dtype in TYPES])),
    Defect("constant", IntensityError, "every voxel is 7", both([nifti(np.full(SHAPE, 7, dtype)) for dtype in TYPES])),
    Defect("large_and_constant", IntensityError, "every voxel is 5",
           with_hole(sized((512, 512, 384), scl_slope=1, scl_inter=5)[0][:352], 352 + 4 * 512 * 512 * 384)),
    Defect("scaled_too_far", IntensityError, "values reach", both(
        [nifti(IMAGE.astype(np.int16), scl_slope=slope) for slope in (1e37, -1e38, 3e38)],
        nifti(IMAGE.astype(np.int16), scl_slope=3e36, scl_inter=3e38), with_voxels(1e39, -1e300, dtype=np.float64),
    )),
    Defect("scaling_not_finite", IntensityError, "scl_slope and scl_inter",
           both(of_each("scl_slope", INF, -INF), of_each("scl_inter", NAN, INF, -INF, scl_slope=1))),
    Defect("scaled_flat", IntensityError, "every voxel is",
           both(of_each("scl_inter", 1e30, -1e12, scl_slope=1), nifti(IMAGE / 1e9, scl_slope=1, scl_inter=100))),
]  # fmt: skip
PATHS = [
    Defect("missing", HeaderError, "No such file", special(nothing)),
    Defect("name_too_long", HeaderError, "File name too long", special(nothing, names=("x" * 300 + ".nii",))),
    Defect("folder", HeaderError, "a folder", special(Path.mkdir)),
    Defect("pipe", HeaderError, "a named pipe", special(os.mkfifo)),
    Defect("device", HeaderError, "a device",
           special(lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to("/dev/null"))),
    Defect("dangling_link", HeaderError, "is a broken link",
           special(lambda path: path.symlink_to("gone.nii"))),
    Defect("looping_link", HeaderError, "levels of symbolic links",
           special(loop, lambda path: path.symlink_to(path.name))),
    Defect("odd_names", HeaderError, "cut short", special(lambda path: path.write_bytes(GOOD[:-2]), names=ODD_NAMES)),
]  # fmt: skip
if os.geteuid():  # root may read every file
    PATHS.append(Defect("locked", HeaderError, "Permission denied", special(locked)))
DEFECTS = [*CONTAINERS, *STREAMS, *CLAIMS, *PLACES, *VOXELS, *PATHS]
SIDECARS = [
    Defect("json_cut", DataError, "is not JSON", beside(b"", b'{"EchoTime": ', b'{"EchoTime": 1', b"EchoTime = 1")),
    Defect("json_list", DataError, "expected a JSON object", beside(b"[]", b"1", b'"text"', b"null", b"[{}]")),
    Defect("json_deep", DataError, "nested too deeply", beside(b"[" * 200_000, b'{"a":' * 200_000)),
    Defect("json_encoding", DataError, "UTF-8", beside('{"a": "é"}'.encode("latin-1"), b"\xff\xfe\0")),
    Defect("json_number", DataError, "not finite", beside(b'{"a": NaN}', b'{"a": [-Infinity]}', b'{"a": 1e999}')),
    Defect("json_huge", DataError, "bytes, expected a sidecar", huge_json),
]
SOUND = {
    "no_scaling.nii": nifti(scl_slope=0, scl_inter=NAN),
    "unset_scaling.nii": nifti(scl_slope=NAN, scl_inter=NAN),
    "big_endian.nii": nifti(order=">"),
    "nifti_2.nii.gz": packed(nifti(kind=TWO, order=">")),
    "extension.nii": nifti(gap=4 + (64 << 10)),
    "padded.nii": GOOD + bytes(4096),
    "padded_gzip.nii.gz": PACKED + bytes(512),
    "much_padding.nii.gz": PACKED + bytes(8 << 20),
    "named.nii.gz": with_name(255, PACKED),
    "block_compressed.nii.gz": b"".join(packed(GOOD[at : at + 1000]) for at in range(0, len(GOOD), 1000)) + packed(b""),
    "two_members.nii.gz": packed(GOOD[:900]) + packed(GOOD[900:]),
    "plain_under_a_gzip_name.nii.gz": GOOD,
    "gzip_under_a_plain_name.nii": PACKED,
    "one_frame.nii": sized((9, 8, 7, 1, 1))[0],
    "unknown_unit.nii": nifti(xyzt_units=0),
    "handedness_0.nii": spaced((0, 2, 2, 3))[0],
    "wrong_bitpix.nii": nifti(bitpix=0),
    **{name.replace(".nii", "_sound.nii"): GOOD for name in ODD_NAMES},
}
"""File name -> an unusual but valid file that holds `IMAGE` at `AFFINE`."""


def write_corpus(out: Path, defects: Iterable[Defect]) -> Iterator[tuple[Defect, Path]]:
    """Write the files of each defect to a folder of its own below `out`; yield each with its defect."""
    for defect in defects:
        folder = out / defect.name
        folder.mkdir(parents=True)
        for path in defect.make(folder):
            yield defect, path


if __name__ == "__main__":
    corpus = list(write_corpus(Path(sys.argv[1]), [*DEFECTS, *SIDECARS]))
    print(f"{len({defect.name for defect, _ in corpus})} defects, {len(corpus)} files")
