"""Models of the Hugging Face hub: resolve their commits, and fetch them to a node."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.utils import tqdm

from cgd_ray.errors import CgdError, ConfigError
from cgd_ray.redaction import one_line
from cgd_ray.storage import transfers

_WRITTEN = "huggingface_hub.snapshot_download"  # the bar of bytes on disk; another one counts network bytes


def commit(model: str, revision: str | None, key: str) -> str:
    """The current commit of a branch or tag; if the hub is unreachable, the commit of the cached model.

    Raises:
        ConfigError: there is no such model; `key` is the recipe's key that names it.
    """
    if not constants.HF_HUB_OFFLINE:
        try:
            return str(HfApi().model_info(model, revision=revision, timeout=10).sha)
        except Exception as error:  # the hub client raises its own, httpx's and OS errors
            cached = try_to_load_from_cache(model, "config.json", revision=revision)
            if not isinstance(cached, str):
                raise _no_such_model(model, key, error) from error
    cached = try_to_load_from_cache(model, "config.json", revision=revision)
    if not isinstance(cached, str):
        raise _no_such_model(model, key, CgdError("HF_HUB_OFFLINE is set and it is not in the cache"))
    return Path(cached).parent.name  # .../snapshots/COMMIT/config.json


def fetch(model: str, revision: str | None, ignored: Sequence[str]) -> Path:
    """Fetch the model and return its directory in the hub's cache; continues an interrupted download.

    Raises:
        ConfigError: there is no such model.
    """
    try:
        return Path(snapshot_download(model, revision=revision, ignore_patterns=list(ignored), tqdm_class=_Counted))
    except Exception as error:  # the hub client raises its own, httpx's and OS errors
        raise _no_such_model(model, "model", error) from error


class _Counted(tqdm):
    """The hub's progress bar, which counts bytes even when it is not shown."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        self._counts = kwargs.get("name") == _WRITTEN
        self._total = 0
        super().__init__(*args, **kwargs)

    @property
    def total(self) -> int:
        """Bytes of the files whose download has begun."""
        return self._total

    @total.setter
    def total(self, value: int | None) -> None:
        if self._counts:
            transfers.expect((value or 0) - self._total)
        self._total = value or 0

    def update(self, n: float | None = 1) -> bool:
        """Show and count `n` more bytes on disk."""
        if self._counts:
            transfers.arrived(int(n or 0))
        return bool(super().update(n))


def _no_such_model(model: str, key: str, error: Exception) -> ConfigError:
    why = one_line(error, 300)
    return ConfigError(f"{key}: {model} is no directory, and the hub does not give it: {why}")
