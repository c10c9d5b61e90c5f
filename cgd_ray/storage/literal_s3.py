"""S3 as fsspec shows it, without patterns in names."""

from s3fs import S3FileSystem

_VERSION, _HIDDEN = "?versionId=", "?\0versionId="


class LiteralS3(S3FileSystem):  # type: ignore[misc]  # s3fs is untyped
    """s3fs whose verbs take every name as it stands.

    In s3fs, `rm`, `mv` and `copy` expand `[`, `*` and `?`: of `bucket/team[1]` they would take `bucket/team1`. And what
    follows `?versionId=` is no part of a key. Libraries that are given this file system (Ray Train, torch's checkpoint
    writer) need the same as our own calls. Patterns are for `glob` alone.
    """

    async def _expand_path(self, path: str | list[str], *depth: object, **options: object) -> list[str]:
        paths = [path] if isinstance(path, str) else path
        found: list[str] = await super()._expand_path(paths, *depth, **{**options, "assume_literal": True})
        return found

    async def _copy(self, path1: str | list[str], path2: str | list[str], **options: object) -> None:
        if not isinstance(path1, str) or not isinstance(path2, str):
            await super()._copy(path1, path2, **options)
            return
        # s3fs would take `path2` for a folder to copy into where `path1` looks like a pattern.
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        for name in await self._find(source) if options.get("recursive") else [source]:
            await self._cp_file(name, target + name.removeprefix(source))

    def split_path(self, path: str) -> tuple[str, str, None]:
        """Bucket and key; the third is a version in s3fs, and none here."""
        bucket, key, _ = super().split_path(path.replace(_VERSION, _HIDDEN))
        return bucket, key.replace(_HIDDEN, _VERSION), None
