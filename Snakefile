from snakemake.utils import min_version

min_version("9.5")


# A configuration given on the command line stands alone: nothing of the default leaks into it.
if "study" not in config:

    configfile: "configs/quickstart.yaml"


container: "docker://dualflow:latest"


include: "pipelines/common.smk"
include: "pipelines/prepare.smk"
include: "pipelines/train.smk"
include: "pipelines/convert.smk"
include: "pipelines/evaluate.smk"


rule all:
    default_target: True
    input:
        manifest("check"),
