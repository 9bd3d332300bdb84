"""Errors that a user can correct; the command line catches `PerpoError` and exits with 2.

PerpoError
├── ConfigError     a setting in the YAML file, or an option, is wrong
├── InputError      a given file, row, image or answer cannot be used
├── ArtifactError   an artifact is missing or damaged, or does not fit the others
│   └── BeingWrittenError   another process writes the artifact now
├── MissingDependencyError   an optional package is not installed
└── ProcessError    one of several processes ended too early
    └── LostContactError   another process noticed that it ended
"""

import errno
import os
import signal
from typing import TypeGuard

_PERMISSIONS = "check the permissions of this file and of the folders above it"
_SPACE = "free some space, then run the same command"
_DISK = "check the disk, or the network that it is on, then run the same command"
_WHAT_TO_CHECK = {
    errno.EACCES: _PERMISSIONS,
    errno.EPERM: _PERMISSIONS,
    errno.EROFS: "name a place that can be written: this disk can only be read",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EIO: _DISK,
    errno.ESTALE: _DISK,
}


class PerpoError(Exception):
    """An error that the user can correct: what is wrong, where, and what to do next."""

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        lines = [what]
        if where:
            lines.append(f"  where: {where}")
        if fix:
            lines.append(f"  fix:   {fix}")
        super().__init__("\n".join(lines))

    def parts(self) -> tuple[str, str | None, str | None]:
        """`what`, `where` and `fix`, to send the error to another process."""
        return self.what, self.where, self.fix


class ConfigError(PerpoError):
    """A setting in the run's YAML file, or an option, is wrong."""


class InputError(PerpoError):
    """A given file, row, image or answer cannot be used."""


class ArtifactError(PerpoError):
    """An artifact is missing or damaged, or does not fit the artifacts it is used with."""


class BeingWrittenError(ArtifactError):
    """Another process is writing this version of an artifact."""


class MissingDependencyError(PerpoError):
    """An optional package is needed but not installed."""


class ProcessError(PerpoError):
    """One of several processes that work together ended too early."""


class LostContactError(ProcessError):
    """This process waited for another process, which ended for an unknown reason."""


class Stopped(Exception):
    """Ctrl-C or SIGTERM ended the work; the message says what is kept and what is lost."""

    def __init__(self, what: str, number: int = signal.SIGTERM) -> None:
        self.number = int(number)
        super().__init__(what)

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.number


def what_to_check(error: OSError) -> str:
    """What to do about an operating system's error about a file."""
    return _WHAT_TO_CHECK.get(error.errno or 0, f"{_PERMISSIONS}, and the disk")


def may_be_whole(error: Exception) -> TypeGuard[OSError]:
    """Whether a file is there, and the system does not let it be read: nothing says it is damaged.

    An OSError without a number is a library's own, of what it read.
    """
    return isinstance(error, OSError) and error.errno not in (None, errno.ENOENT)


def of_the_system(error: OSError) -> PerpoError | None:
    """The error for one of the operating system that a user can correct, such as a file that may
    not be read; None for all others, which a command must not have met."""
    if error.errno not in _WHAT_TO_CHECK:
        return None
    named = isinstance(error.filename, str | bytes | os.PathLike)
    return PerpoError(
        f"the operating system refused: {error.strerror or os.strerror(error.errno)}",
        where=os.fsdecode(error.filename) if named else None,
        fix=what_to_check(error) if named else f"{what_to_check(error)}; --debug shows where",
    )


def first_line(error: Exception) -> str:
    """The first line of an exception's message; its type's name if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
