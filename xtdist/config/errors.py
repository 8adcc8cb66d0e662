"""What a user's mistake becomes: one sentence, exit code 2, no traceback."""

from __future__ import annotations


class UserError(Exception):
    """A mistake that the user can fix. The message says what was given, where, what is allowed
    and how to fix it; the command line prints it alone and exits with code 2."""


class ConfigError(UserError, ValueError):
    """A config file, override or keyword that does not describe anything we can build.

    place: where in the config that was checked, if the message does not start with it (``a.b: ``).
    """

    def __init__(self, message: str = "", *, place: str = "") -> None:
        super().__init__(message)
        self.place = place


class DataError(UserError):
    """A dataset, shard or tokenizer that is missing, damaged, or not the expected one."""


class UnreachableError(DataError):
    """A store that did not answer, though it was asked again and again. It may be back later."""


class CheckpointError(UserError):
    """A checkpoint or weights folder that is missing, damaged, or of another model."""


class ResourceError(UserError):
    """The machine or cluster lacks what the command needs: CPUs, a free port, disk space."""
