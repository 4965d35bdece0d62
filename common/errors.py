"""Errors that are meant for the person at the keyboard.

The command line prints them as one line and exits with 2; every other exception is a fault and keeps its trace. Each
class is also the built-in exception that a caller in Python would expect.
"""


class UserError(Exception):
    """A mistake that its message tells how to mend: a setting, a file, a full disk.

    Example:
        >>> raise ConfigError("batch_size 0 must be at least 1")
        Traceback (most recent call last):
        cubelet.common.errors.ConfigError: batch_size 0 must be at least 1
    """


class ConfigError(UserError, ValueError):
    """A setting, or a combination of settings, that cannot work."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that was named and is not there."""

    def __str__(self) -> str:  # OSError would print a single argument in quotes on some paths
        return str(self.args[0]) if self.args else ""


class UnreadableFileError(UserError, OSError):
    """A file that is there and cannot be read or understood."""


class DiskError(UserError, OSError):
    """A file that cannot be written: a full, read-only or vanished disk."""
