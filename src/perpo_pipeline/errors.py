"""The errors a user can cause; the command line catches `PerpoError` and exits with 2.

PerpoError
├── ConfigError     a setting in the YAML, or a flag, is wrong
├── InputError      a file, row, image or answer that was given cannot be used
├── ArtifactError   an artifact is missing, damaged, or does not fit
├── MissingDependencyError   an optional package is not installed
└── ProcessError    one of several processes has ended
    └── LostContactError   so another one says
"""


class PerpoError(Exception):
    """Something the user can put right: what is wrong, where, and what to do next."""

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        lines = [what]
        if where:
            lines.append(f"  where: {where}")
        if fix:
            lines.append(f"  fix:   {fix}")
        super().__init__("\n".join(lines))

    def parts(self) -> tuple[str, str | None, str | None]:
        """What, where and fix, to carry it to another process."""
        return self.what, self.where, self.fix


class ConfigError(PerpoError):
    """A setting in the run's YAML file or a flag is wrong."""


class InputError(PerpoError):
    """A file, row, image or answer that was given cannot be used."""


class ArtifactError(PerpoError):
    """An artifact is missing, damaged, or does not fit its neighbours."""


class MissingDependencyError(PerpoError):
    """An optional package is needed and not installed."""


class ProcessError(PerpoError):
    """One of several processes that work together has ended too early."""


class LostContactError(ProcessError):
    """This process waited for another one that is no more, and does not know why."""


class Stopped(Exception):
    """SIGTERM has ended the work at a place from which the same command goes on."""


def first_line(error: Exception) -> str:
    """What an exception says, without the stack of advice behind it."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
