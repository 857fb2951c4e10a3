PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
CONFIG ?= configs/quickstart.yaml
CORES  ?= all
READY  := $(VENV)/.ready
# Modules are compiled once, also where the environment turns that off: otherwise every process spends seconds on it.
export PYTHONDONTWRITEBYTECODE :=
# MLflow's telemetry is off.
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true
# Two workers on two cores: further threads of a worker would only wait for each other.
PYTEST = OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup
PLATFORM := $(shell $(PYTHON) -c 'import platform as p; print(p.system(), p.machine(), p.python_version()[:4], sep="-")')
# `make setup CONSTRAINTS=` installs the newest versions in place of the tested ones.
CONSTRAINTS ?= $(if $(filter Linux-x86_64-3.11 Linux-x86_64-3.12 Linux-x86_64-3.13,$(PLATFORM)),constraints.txt)
# Python compiles the modules that are imported, a fraction of those installed; pip would spend a minute on all of them.
INSTALL = $(BIN)/python -m pip install --quiet --no-compile
LOCKED  = $(if $(CONSTRAINTS),--require-hashes --constraint $(CONSTRAINTS))
# Tests of `make test-fast`, except those marked slow. Two flows represent all flows.
FAST_TESTS := $(addprefix tests/,test_*.py config contracts data docs evaluation models report flows/test_spec.py \
	flows/test_model.py imaging/test_affines.py imaging/test_geometry.py imaging/test_volume.py \
	training/test_train_flow.py)

# Modules that a mistake would make silently wrong: nearly every branch is tested.
CORE := $(addprefix dualflow/,commit.py temporaries.py digests.py layout.py imaging/nifti_header.py \
	imaging/geometry.py imaging/affines.py flows/*)

.PHONY: help setup constraints sbom run test test-fast coverage mutants fuzz lint benchmark bench-step \
	bench-preprocessing gpu-check crash-test docs figure screenshots ui clean

help:  ## Show the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22

setup: $(READY)  ## Create the environment and install dualflow into it.

$(READY): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dualflow needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
ifneq ($(CONSTRAINTS),)
	@sed -n '/^pip==/,/[^\\]$$/p' $(CONSTRAINTS) > $(VENV)/pip.txt
	$(INSTALL) --require-hashes --requirement $(VENV)/pip.txt
	@# A build of torch among pip's find-links precedes that of PyPI, which brings CUDA.
	@$(INSTALL) $(LOCKED) --no-index --no-deps torch 2> /dev/null || true
else
	$(INSTALL) --upgrade pip
endif
	@$(BIN)/python docker/requirements.py dev > $(VENV)/requirements.txt
	$(INSTALL) $(LOCKED) --requirement $(VENV)/requirements.txt
	$(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

constraints: $(READY)  ## Write the versions of .venv and the hashes of their files to constraints.txt (5 minutes).
	$(BIN)/python docker/constraints.py

# An environment of its own: a package of the tool would add two seconds to every import of MONAI in .venv.
sbom: $(READY)  ## List the software of .venv in sbom.json (CycloneDX), and validate it.
	$(PYTHON) -m venv --without-pip $(VENV)/sbom
	$(BIN)/python -m pip --python $(VENV)/sbom install --quiet $(LOCKED) cyclonedx-bom
	$(VENV)/sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --validate --of JSON \
		--output-file sbom.json $(BIN)/python

run: $(READY)  ## Run the whole workflow on CONFIG (default: the embedded cohort).
	@$(BIN)/dualflow run --config $(CONFIG) --cores $(CORES)

test: $(READY)  ## Run all tests (about 20 minutes on 2 cores).
	$(PYTEST) --no-loadscope-reorder

test-fast: $(READY)  ## Run the tests of the main contracts (1 minute on 2 cores).
	$(PYTEST) -m "not slow" $(FAST_TESTS)

coverage: $(READY)  ## Run all tests and require 90 % of lines and branches, and 98 % of those of the core modules.
	$(PYTEST) --no-loadscope-reorder --cov --cov-report=
	$(BIN)/coverage report --fail-under=90
	@for modules in $(foreach path,$(CORE),'$(path)'); do \
		$(BIN)/coverage report --fail-under=98 --include="$$modules" || exit 1; \
	done

mutants: $(READY)  ## Change the core modules in 150 places and require that the tests notice 90 % (30 minutes on one core).
	$(BIN)/python tests/mutation/mutants.py $(if $(SAMPLE),--sample $(SAMPLE))

fuzz: $(READY)  ## Read a million damaged files with every reader (an hour on one core); CASES=1000 for fewer.
	$(BIN)/python tests/fuzz/fuzz.py $(if $(CASES),--cases $(CASES))

lint: $(READY)  ## Check style, types, spelling and the workflow.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell configs docker docs dualflow pipelines tests Makefile Snakefile mkdocs.yml pyproject.toml *.md
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/snakefmt --check --compact-diff Snakefile pipelines
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/snakemake --lint

benchmark: $(READY)  ## Compute the numbers of docs/results/accuracy.md on both laws, at 240 and 60 subjects (hours on 2 cores).
	@$(BIN)/python tests/benchmarks/laws.py --config configs/benchmark.yaml --cores $(CORES)

bench-step: $(READY)  ## Time an optimiser step of CONFIG in each memory mode.
	@$(BIN)/python tests/benchmarks/step.py --config $(CONFIG)

bench-preprocessing: $(READY)  ## Time the preprocessing of two scans of CONFIG.
	@$(BIN)/python tests/benchmarks/preprocessing.py --config $(CONFIG)

gpu-check: $(READY)  ## Check training, conversion and forecast on this machine's GPU (10 minutes).
	$(BIN)/python tests/benchmarks/gpu_check.py

crash-test: $(READY)  ## End the steps of a tiny study by force 1,000 times and compare with an unbroken one (90 minutes).
	$(BIN)/python tests/benchmarks/kill_workflow.py

docs: $(READY)  ## Build the documentation into site/, warnings are errors.
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

figure: $(READY)  ## Draw docs/images/example.png from a finished CONFIG.
	$(BIN)/python docs/scripts/make_figure.py --config $(CONFIG)

screenshots: $(READY)  ## Take pictures of the pages of a finished CONFIG with Chromium: report, quality page, MLflow.
	@$(BIN)/python tests/benchmarks/screenshots.py --config $(CONFIG)

ui: $(READY)  ## Open the MLflow pages of the tracked runs on 127.0.0.1:5000.
	@$(BIN)/dualflow ui --config $(CONFIG)

clean:  ## Remove all results.
	rm -rf results .snakemake
