"""Errors whose text is meant for the user."""

from cgd_ray.redaction import redact

RERUN = "rerun the same command to resume"
"""End of the text of every error after which the run can be resumed."""


class CgdError(Exception):
    """A mistake or an outage that the user can fix.

    Its text is one line that names the key, file or row and the fix. Entry points print it without a traceback and
    exit with `exit_code`.
    """

    exit_code = 1

    def __init__(self, text: str) -> None:
        super().__init__(redact(text))  # it may quote output of other programs that contains keys


class ConfigError(CgdError):
    """The recipe, or something that it names, is wrong: nothing was started."""

    exit_code = 2


class StoppedError(CgdError):
    """The run stopped on purpose (ceiling, failures, signal) in a state that the same command resumes."""

    exit_code = 3
