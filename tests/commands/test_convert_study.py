"""Volumes of an earlier conversion do not outlive it."""

from dualflow.commit import commit_bytes, commit_json
from dualflow.inference.convert import remove_volumes
from dualflow.manifest import write_manifest


def test_volumes_of_an_earlier_conversion_go_with_their_sidecars(tmp_path):
    """What its manifest lists is removed, other files stay, and a broken or missing manifest removes nothing."""
    folder = tmp_path / "derivatives" / "sub-1"
    listed, sidecar, other = folder / "a_pet.nii.gz", folder / "a_pet.json", folder / "b_T1w.json"
    commit_json(sidecar, {})
    commit_json(other, {})
    commit_bytes(listed, b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00")
    manifest = tmp_path / "manifests" / "convert" / "sub-1.json"
    remove_volumes(manifest)
    write_manifest(manifest, step="convert", outputs={"synth": listed}, inputs={}, config={})
    remove_volumes(manifest)
    assert not listed.exists()
    assert not sidecar.exists()
    assert other.exists()
    manifest.write_text("{")
    remove_volumes(manifest)
