"""The one kind of error that a user is meant to read."""

from cgd_ray.redaction import redact

RERUN = "rerun the same command to resume"
"""How every error ends after which nothing is lost."""


class CgdError(Exception):
    """A mistake or an outage that a person can mend.

    Its text is one line that names the key, file or row and the mend. Entry points print it without a traceback and
    exit with `exit_code`.
    """

    exit_code = 1

    def __init__(self, text: str) -> None:
        super().__init__(redact(text))  # it may quote others, who quote keys


class ConfigError(CgdError):
    """The recipe, or what it points to, is wrong: nothing was started."""

    exit_code = 2


class StoppedError(CgdError):
    """The run stopped on purpose (ceiling, failures, signal) in a state that the same command continues."""

    exit_code = 3
