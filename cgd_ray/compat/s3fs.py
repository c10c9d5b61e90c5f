"""S3 through fsspec, without patterns in names."""

import asyncio

import structlog
from s3fs import S3FileSystem

log = structlog.get_logger(__name__)
_STUCK_SECONDS = 180.0  # per request with the client's own retries, which wait up to 20 s each
_TRIES = 5

_VERSION, _HIDDEN = "?versionId=", "?\0versionId="


class LiteralS3(S3FileSystem):
    """s3fs whose operations take every name literally.

    In s3fs, `rm`, `mv` and `copy` expand `[`, `*` and `?`: `bucket/team[1]` would mean `bucket/team1`. Text after
    `?versionId=` is not part of a key there. Libraries that get this file system (Ray Train, torch's checkpoint writer)
    need literal names as our own calls do. Only `glob` takes patterns.

    A request that hangs is sent again: the client's time limits did not end a request whose server was killed.
    """

    async def _expand_path(self, path: str | list[str], *depth: object, **options: object) -> list[str]:
        paths = [path] if isinstance(path, str) else path
        found: list[str] = await super()._expand_path(paths, *depth, **{**options, "assume_literal": True})
        return found

    async def _copy(self, path1: str | list[str], path2: str | list[str], **options: object) -> None:
        if not isinstance(path1, str) or not isinstance(path2, str):
            await super()._copy(path1, path2, **options)
            return
        # s3fs would treat `path2` as a folder to copy into if `path1` looks like a pattern.
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        for name in await self._find(source) if options.get("recursive") else [source]:
            await self._cp_file(name, target + name.removeprefix(source))

    def split_path(self, path: str) -> tuple[str, str, None]:
        """Return bucket, key and None; in s3fs, the third is a version."""
        bucket, key, _ = super().split_path(path.replace(_VERSION, _HIDDEN))
        return bucket, key.replace(_HIDDEN, _VERSION), None

    async def _call_s3(self, method: str, *arguments: object, **options: object) -> object:
        for left in reversed(range(_TRIES)):
            try:
                async with asyncio.timeout(_STUCK_SECONDS) as limit:
                    answer: object = await super()._call_s3(method, *arguments, **options)
                    return answer
            except TimeoutError:
                if not limit.expired() or not left:
                    raise
                log.warning("S3 does not answer, and is asked again", request=method, seconds=_STUCK_SECONDS)
        raise AssertionError("unreachable")
