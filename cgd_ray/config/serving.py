"""Access to the served student and its replicas: keys that recipes and `serving.app:build` share."""

import ipaddress
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from cgd_ray.config.base import Section

PositiveInt = Annotated[int, Field(ge=1)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Origin = Annotated[str, Field(pattern=r"^https?://[^/\s*,]+$")]


def _split(given: object) -> object:
    """`serve run` passes all arguments as text."""
    return [part for part in given.split(",") if part] if isinstance(given, str) else given


def _absolute(given: str) -> str:
    """Make the path absolute: replicas run in another directory."""
    return str(Path(given).expanduser().absolute())


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address or the name localhost."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.lower() == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


class Access(Section):
    """Keys, origins and limits of the endpoint."""

    keys_file: Annotated[str, Field(min_length=1), AfterValidator(_absolute)] | None = None
    """File with one key a line, or `sha256:` and the SHA-256 of one, on every node that runs the ingress. It is
    read again when it changes. Null: `cgd serve` makes a key at each start."""
    key_digests: Annotated[tuple[Digest, ...], BeforeValidator(_split)] = ()
    """SHA-256 of further keys, valid until the next deployment."""
    no_key: bool = False
    """Serve without keys, to programs on this machine only."""
    allowed_origins: Annotated[tuple[Origin, ...], BeforeValidator(_split)] = ()
    """Origins of web pages that may call the endpoint, for instance `https://chat.example.org`."""
    max_body_bytes: PositiveInt = 4 * 2**20
    """Largest request body; `max_model_len` bounds the conversation."""

    @model_validator(mode="after")
    def _keys_or_none(self) -> Self:
        if self.no_key and self.has_keys:
            raise ValueError("no_key beside keys_file or key_digests. Fix: give keys, or no_key")
        return self

    @property
    def has_keys(self) -> bool:
        """Whether any key is configured."""
        return self.keys_file is not None or bool(self.key_digests)


class Replicas(Section):
    """Number of replicas and load of each."""

    model_id: Annotated[str, Field(pattern=r"^[^:\s]+$")] = "student"
    """Name that requests use; no colon, which Ray Serve LLM takes for an adapter's name."""
    min_replicas: PositiveInt = 1
    max_replicas: PositiveInt = 1
    target_ongoing_requests: PositiveInt = 16
    """Requests in flight per replica that Serve's autoscaler targets."""
    max_ongoing_requests: PositiveInt = 64
    """Requests that a replica works on at a time; further ones wait. Also the most answers that one request may ask
    for."""
    max_queued_requests: PositiveInt = 64
    """Requests that wait, or were not given to a replica yet, for each replica of the ingress; further ones get 429 and
    when to ask again."""
    drain_timeout_s: Annotated[float, Field(gt=0)] = 600
    """Seconds that a replica which is no longer needed has for the answers that it is giving."""

    @model_validator(mode="after")
    def _replicas_in_order(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas {self.max_replicas} is below min_replicas {self.min_replicas}. "
                "Fix: raise it, or lower min_replicas"
            )
        return self
