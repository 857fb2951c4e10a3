"""The error tree: every failure a user can cause is one of these, with one readable line.

    DualflowError
    ├── ConfigError          a config file or command-line value
    ├── DataError            a study or a file in it
    │   ├── HeaderError      a volume refused before its voxels are read
    │   ├── GeometryError    an affine or grid that cannot be trusted
    │   ├── IntensityError   voxels that cannot be used (NaN, constant, empty)
    │   ├── PairingError     a target without its source, a subject named twice
    │   └── RegistrationError an alignment whose quality figures fail
    ├── CheckpointError      a model or training state that does not verify
    ├── InputError           a tensor the model cannot take
    │   └── ShapeError       one whose size does not fit
    └── CommitError          an output that could not be made real

A message names the value, what was expected and the remedy. `exit_code` is what the command line returns.
"""

from __future__ import annotations

_LONGEST = 2000


def printable(text: str) -> str:
    """`text` on one line: names of files may hold line ends, terminal codes and bytes that are no text."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


class DualflowError(Exception):
    """Base of all errors that are reported as one line instead of a traceback."""

    exit_code = 1

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) > _LONGEST:  # what is named may be a damaged file's content; the remedy comes last
            text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 4 :]}"
        return printable(text)


class ConfigError(DualflowError, ValueError):
    """A configuration value that cannot be used."""

    exit_code = 2


class DataError(DualflowError):
    """A study, subject or file that cannot be used."""

    exit_code = 3


class HeaderError(DataError):
    """A volume whose header is refused before any voxel is read."""


class GeometryError(DataError):
    """An affine or grid that cannot be trusted."""


class IntensityError(DataError):
    """Voxel values that cannot be used."""


class PairingError(DataError):
    """Scans that do not form the pair a study needs."""


class RegistrationError(DataError):
    """An alignment whose quality figures are out of bounds."""


class CheckpointError(DualflowError):
    """A model or training state that does not verify."""

    exit_code = 4


class InputError(DualflowError, ValueError):
    """A tensor that a model cannot take: its number format or its values."""

    exit_code = 5


class ShapeError(InputError):
    """A tensor whose size does not fit the model."""


class DriftError(DualflowError):
    """A flow whose inverse no longer undoes it closely enough to learn by."""

    exit_code = 7


class StoppedError(DualflowError):
    """A training that was asked to end, and did so with its state kept; to be started again."""

    exit_code = 75


class CommitError(DualflowError):
    """An output file that could not be made real."""

    exit_code = 6
