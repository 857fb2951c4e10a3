"""The error tree: every failure a user can cause is one of these, with one readable line.

    DualflowError
    ├── ConfigError          a config file or command-line value
    ├── DataError            a study or a file in it
    │   ├── HeaderError      a volume whose header is invalid
    │   ├── GeometryError    an affine or grid that is ambiguous or invalid
    │   ├── IntensityError   voxels that are NaN, constant or empty
    │   ├── PairingError     a target without its source, a subject named twice
    │   └── RegistrationError an alignment of poor quality
    ├── CheckpointError      a model or checkpoint that does not verify
    ├── InputError           a tensor that a model cannot take
    │   └── ShapeError       a tensor of the wrong size
    ├── CommitError          an output that could not be written
    ├── ClusterError         workers or a scheduler that cannot be used
    ├── InterruptedRunError  work that Ctrl-C or SIGTERM ended and the same command resumes
    ├── DriftError           a flow whose inverse is no longer accurate
    └── StoppedError         a training that was interrupted and can resume

A message names the value, what was expected and what to do. `exit_code` is the exit code of the command line.
"""

from __future__ import annotations

_MAX_LENGTH = 2000


def printable(text: str) -> str:
    """`text` on one line: file names may hold line ends, terminal escape sequences and undecodable bytes."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


class DualflowError(Exception):
    """Base of all errors that are reported as one line instead of a traceback."""

    exit_code = 1

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) > _MAX_LENGTH:  # it may quote a damaged file; the remedy comes last
            text = f"{text[: _MAX_LENGTH // 2]} ... {text[-_MAX_LENGTH // 4 :]}"
        return printable(text)


class ConfigError(DualflowError, ValueError):
    """A configuration value that cannot be used."""

    exit_code = 2


class DataError(DualflowError):
    """A study, subject or file that cannot be used."""

    exit_code = 3


class HeaderError(DataError):
    """A volume whose header is invalid; no voxel is read."""


class GeometryError(DataError):
    """An affine or grid that is ambiguous or invalid."""


class IntensityError(DataError):
    """Voxels that are NaN, infinite, constant or empty."""


class PairingError(DataError):
    """Scans that form no pair: a target without its source, a subject named twice."""


class RegistrationError(DataError):
    """An alignment whose quality metrics are out of bounds."""


class CheckpointError(DualflowError):
    """A model or checkpoint that does not verify."""

    exit_code = 4


class InputError(DualflowError, ValueError):
    """A tensor that a model cannot take: its dtype or its values."""

    exit_code = 5


class ShapeError(InputError):
    """A tensor whose size does not fit the model."""


class DriftError(DualflowError):
    """A flow whose inverse is no longer accurate enough to train."""

    exit_code = 7


class StoppedError(DualflowError):
    """A training that was interrupted with its checkpoint written; run it again to resume."""

    exit_code = 75


class ClusterError(DualflowError):
    """A cluster that cannot be joined, or whose scheduler ended."""

    exit_code = 8


class InterruptedRunError(DualflowError):
    """Work that Ctrl-C or SIGTERM ended; the same command resumes it."""

    exit_code = 130


class CommitError(DualflowError):
    """An output file that could not be written."""

    exit_code = 6
