"""Arguments of `serving.app:build`, from `serve run`, a Serve config file or a RayService."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError, field_validator

from cgd_ray.config.places import ModelPlace, PlainUrl
from cgd_ray.config.run import StorageSection
from cgd_ray.config.serving import Access, Replicas
from cgd_ray.errors import ConfigError
from cgd_ray.inference.vllm.options import VllmEngineOptions


class ServeArgs(Access, Replicas, VllmEngineOptions):
    """One model, its engine, and its number of replicas. Flat, since `serve run` passes `key=value` pairs as text."""

    model: ModelPlace
    """Directory (an exported student), `s3://` prefix, or hub id."""
    revision: str | None = None
    """Commit, tag or branch of a hub id."""

    endpoint_url: PlainUrl | None = None
    """S3 endpoint, if it is not AWS. Keys come from the environment of the Serve nodes."""
    region: str | None = None
    anonymous: bool = False
    """Read a public bucket without keys."""

    @field_validator("model")
    @classmethod
    def _absolute(cls, model: str) -> str:
        # Replicas run in another directory than the caller of `build`.
        path = Path(model).expanduser()
        if path.is_dir():
            return str(path.resolve())
        if model.startswith(("/", "./", "../", "~")):
            raise ValueError("no such directory")
        return model

    @field_validator("engine_args", mode="before")
    @classmethod
    def _read_json(cls, given: object) -> object:
        return json.loads(given) if isinstance(given, str) else given

    @property
    def access(self) -> Access:
        """Access settings of the endpoint."""
        return Access.model_validate(self.model_dump(include=set(Access.model_fields)))

    @property
    def storage(self) -> StorageSection:
        """Storage settings for an `s3://` model."""
        return StorageSection(endpoint_url=self.endpoint_url, region=self.region, anonymous=self.anonymous)


def parse_args(args: Mapping[str, Any]) -> ServeArgs:
    """Validate the arguments of `serving.app:build`; numbers may be text.

    Raises:
        ConfigError: one line that names the argument and the fix.
    """
    try:
        return ServeArgs.model_validate(dict(args))
    except ValidationError as error:
        raise ConfigError(_explain(error)) from error


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    match first["type"]:
        case "extra_forbidden":
            return f"serving: unknown argument {name}; known are {', '.join(ServeArgs.model_fields)}"
        case "missing":
            return f"serving: argument {name} is missing: pass {name}=VALUE"
    if name.startswith("key_digests"):  # the value may be the key itself
        return "serving: key_digests: not the SHA-256 of a key in 64 hex digits (sha256sum)"
    message = first["msg"].removeprefix("Value error, ")
    return f"serving: {name}={first['input']}: {message}" if name else f"serving: {message}"
