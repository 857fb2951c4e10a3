#!/bin/sh
# Installs dualflow and what it needs beside an installed torch; LOCKED holds pip's options for verified versions.
set -eu
python docker/requirements.py > requirements.txt
# shellcheck disable=SC2086 - LOCKED is a list of options
pip install ${LOCKED-} --requirement requirements.txt
pip install --no-deps --no-build-isolation .
dualflow --version
