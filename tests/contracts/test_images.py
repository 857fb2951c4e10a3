"""The compose files build stages of the Dockerfile, and name the images by them; base images are pinned."""

import re
from pathlib import Path

import pytest
import yaml

from dualflow.tracking.source_version import COMMIT_VARIABLE

DOCKER = Path(__file__).parents[2] / "docker"
STAGES = set(re.findall(r"^FROM \S+ AS (\S+)$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("name", ["compose.yaml", "compose.cuda.yaml"])
def test_services_are_built_from_stages(name):
    """The tag of an image is its stage."""
    services = yaml.safe_load((DOCKER / name).read_text())["services"].values()
    targets = {service["image"]: service["build"]["target"] for service in services if "build" in service}
    assert targets
    assert set(targets.values()) <= STAGES
    assert all(image == f"dualflow:{target}" for image, target in targets.items())


def test_images_of_dualflow_have_the_commit_of_their_build():
    """The builder gets no history. A stage sees only the arguments that it declares; compose passes it on."""
    stages = re.split(r"^FROM ", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)
    installing = [stage for stage in stages if "RUN sh docker/install.sh" in stage]
    assert len(installing) == 2
    assert all(f'\nARG GIT_COMMIT=""\nENV {COMMIT_VARIABLE}=${{GIT_COMMIT}}\n' in stage for stage in installing)
    trainer = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["trainer"]
    assert trainer["build"]["args"] == {"GIT_COMMIT": "${GIT_COMMIT:-}"}


def test_images_of_others_have_a_digest():
    """A tag may name another image tomorrow; a digest is the image."""
    base = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)[1]
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    database = services["postgres"]["image"].removeprefix("${POSTGRES_IMAGE:-").removesuffix("}")
    for image in (base, database):
        assert re.fullmatch(r"\w+:[\w.-]+@sha256:[0-9a-f]{64}", image)


def test_every_installing_stage_declares_the_lock():
    """Podman hands a stage no argument that it does not declare; the newest versions would be installed."""
    head, *stages = re.split(r"^FROM ", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)
    assert "ARG LOCKED=" in head
    installing = [stage for stage in stages if "${LOCKED}" in stage or "RUN sh docker/install.sh" in stage]
    assert len(installing) == 4
    assert all("\nARG LOCKED\n" in stage for stage in installing)


def test_the_gpu_file_reserves_gpus_for_the_trainer():
    """It changes no other service."""
    services = yaml.safe_load((DOCKER / "compose.cuda.yaml").read_text())["services"]
    assert set(services) == {"trainer"}
    (device,) = services["trainer"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
