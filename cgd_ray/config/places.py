"""Where things lie: local paths, `s3://` prefixes, and models by name."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from cgd_ray.redaction import mask_url_credentials

_S3 = re.compile(r"s3://[^/\s]")
_LIKE_A_URL = re.compile(
    r"""
    .*://                      # any scheme, wherever it begins
    | [\s'"<(]*[a-z][a-z0-9+.-]*:    # s3:/bucket, s3:bucket, S3:
    | [\s'"<(]*s3[an]?\W?[/\\]{2}    # s3//bucket, s3;//bucket
    | [/\\]+s3[an]?:                 # /s3:/bucket
    """,
    re.IGNORECASE | re.VERBOSE,
)
_DEMO = re.compile(r"demo:[^/]")


def checked_place(place: str) -> str:
    """The place, a local path or `s3://BUCKET...`; others would become a local folder of that name.

    Raises:
        ValueError: it has another scheme, or looks like a mistyped one.
    """
    if _LIKE_A_URL.match(place) and not _S3.match(place):
        raise ValueError(
            "only local paths and s3://BUCKET/PREFIX are supported. Fix: correct it, or put ./ before a local path "
            "with a colon"
        )
    return place


def _checked_url(url: str) -> str:
    if re.search(r"://[^/]*@", url) or mask_url_credentials(url) != url:
        raise ValueError(
            "a name, password or key in this URL would be stored with the run. Fix: leave it out, and put it into the "
            "environment (for a teacher, into the variable that api_key_env names)"
        )
    return url


def _checked_model(model: str) -> str:
    return model if _DEMO.match(model) else checked_place(model)


Place = Annotated[str, Field(min_length=1), AfterValidator(checked_place)]
"""A local path or `s3://BUCKET/PREFIX`."""

PlainUrl = Annotated[str, AfterValidator(_checked_url)]
"""The URL of a service whose keys come from the environment alone."""

ModelPlace = Annotated[str, Field(min_length=1), AfterValidator(_checked_model)]
"""A hub id, a directory, an `s3://` prefix, or `demo:NAME`."""
