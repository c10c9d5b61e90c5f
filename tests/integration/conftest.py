"""Servers that several modules use."""

from collections.abc import Iterator

import pytest

from tests.servers import RayHead, S3Server, ray_head, s3_server


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module")
def head(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    with ray_head(tmp_path_factory.mktemp("home"), s3.environment) as started:
        yield started
