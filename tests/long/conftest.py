"""The servers of the integration tests."""

from tests.integration.conftest import head, s3

__all__ = ["head", "s3"]
