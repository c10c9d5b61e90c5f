from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.training.loop import alone
from tests.unit.training.tiny import write_tiny_model


@pytest.fixture(scope="package")
def one_rank() -> Iterator[None]:
    """This process as the only rank; once, for DeepSpeed keeps what it has made of the first process group."""
    with alone():
        yield


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 2-layer random Llama with a small trained tokenizer; needs no download."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    write_tiny_model(folder)
    return folder
