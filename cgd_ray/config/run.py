"""Where a run lives: its name, its root, and how the root is reached."""

from typing import Annotated

from pydantic import Field

from cgd_ray.config.base import Section
from cgd_ray.config.places import Place, PlainUrl


class RunSection(Section):
    """The run's name and place. Tables under one root are shared by all runs of that root."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    """Folder of this run below `root/runs/`."""

    root: Place
    """Local directory or `s3://bucket/prefix`. A job submitted to a cluster needs an absolute one."""

    seed: int = 0
    """Every other seed (sampling, shuffling, training) is derived from this one."""


class StorageSection(Section):
    """How an `s3://` root is reached. Keys come from the environment (AWS_ACCESS_KEY_ID, ...), never from here."""

    endpoint_url: PlainUrl | None = None
    """S3 endpoint of another provider, for instance `http://127.0.0.1:9000`; null means AWS."""

    region: str | None = None
    """Region name; null leaves it to the AWS configuration."""

    anonymous: bool = False
    """Read public buckets without keys."""

    flush_rows: Annotated[int, Field(ge=1)] = 256
    """Finished rows that make a part file."""

    flush_seconds: Annotated[float, Field(gt=0, le=30)] = 5.0
    """Longest wait of a finished row for its part file, in seconds: the most that a kill loses."""
