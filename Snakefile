from os import environ

from snakemake.utils import min_version

min_version("9.17")


# A configuration from the command line replaces the default one; the two are not merged.
if "study" not in config:

    configfile: f"{workflow.basedir}/configs/quickstart.yaml"


# For --software-deployment-method apptainer: the image of docker/Dockerfile in this machine's Docker, or any other.
container: environ.get("DUALFLOW_IMAGE", "docker-daemon:dualflow:latest")


include: "pipelines/common.smk"
include: "pipelines/prepare.smk"
include: "pipelines/train.smk"
include: "pipelines/convert.smk"
include: "pipelines/impute.smk"
include: "pipelines/evaluate.smk"


# Every manifest is a target. With the last one alone, a missing manifest in the middle would not be made again.
rule all:
    default_target: True
    input:
        [manifest(step) for step in step_names(study)],
