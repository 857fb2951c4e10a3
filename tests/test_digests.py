"""Digests depend on content alone, and keep names apart."""

from hashlib import sha256 as hashlib_sha256

from dualflow.digests import ascii_name, digest_of, sha256


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path):
    """A file of more than one chunk too."""
    data = bytes(range(256)) * 8200
    (tmp_path / "x").write_bytes(data)
    assert sha256(tmp_path / "x") == hashlib_sha256(data).hexdigest()


def test_the_digest_of_a_value_ignores_key_order():
    """Other values have other digests."""
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1}) != digest_of({"a": 2, "b": 1})


def test_texts_of_other_characters_have_names_of_their_own():
    """Characters that a file's name cannot have become a digest."""
    terms = ("Gruppe=ä", "Gruppe=ö", "诊断=甲", "诊断=乙", "atn=A+T+", "atn=A-T-", "group=patient")
    names = [ascii_name(term, "-") for term in terms]
    assert len(set(names)) == len(terms)
    assert names[-1] == "group-patient"
