"""Decompression of gzip streams, compared with the standard library's."""

import gzip
import io
import zlib

import numpy as np
import pytest

from dualflow.imaging.gzip_stream import open_gzip

RNG = np.random.default_rng(0)
CONTENTS = {
    "noise": RNG.bytes(300_000), "zeros": bytes(5 << 20), "short": b"x", "nothing": b"",
    "mixed": RNG.integers(0, 3, 200_000, np.uint8).tobytes(),
}  # fmt: skip


@pytest.mark.parametrize("size", [1000, 65536, 1 << 24])
@pytest.mark.parametrize("level", [0, 1, 9])
@pytest.mark.parametrize("content", CONTENTS)
def test_streams_are_those_of_the_standard_library(content, level, size):
    """Whatever the size of the reads; members follow each other with and without padding."""
    data = CONTENTS[content]
    packed = gzip.compress(data, level)
    for stream in (packed, packed + bytes(1000), packed + packed, packed + bytes(70_000) + packed):
        expected = gzip.decompress(stream)
        with open_gzip(io.BytesIO(stream)) as reader:
            assert b"".join(iter(lambda: reader.read(size), b"")) == expected


@pytest.mark.parametrize("cut", [5, 11, 5000, -8, -1])
def test_a_stream_that_ends_early_is_an_error(cut):
    """Also if only its checksum is missing."""
    stream = gzip.compress(CONTENTS["noise"])[:cut]
    with pytest.raises(EOFError), open_gzip(io.BytesIO(stream)) as reader:
        reader.read()


@pytest.mark.parametrize("offset", [-1, -5])
def test_a_wrong_checksum_is_an_error(offset):
    """The checksum and the length at the end of a member are verified."""
    stream = bytearray(gzip.compress(CONTENTS["mixed"]))
    stream[offset] ^= 1
    with pytest.raises(zlib.error), open_gzip(io.BytesIO(bytes(stream))) as reader:
        reader.read()
