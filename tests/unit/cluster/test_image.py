"""The Dockerfile names files that exist and versions that fit the locks. Nothing here builds it."""

import re
from fnmatch import fnmatch
from pathlib import Path

from .conftest import REPOSITORY

DOCKERFILE = (REPOSITORY / "cluster/Dockerfile").read_text()


def copied() -> list[str]:
    lines = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, flags=re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


def test_everything_that_is_copied_exists_and_is_sent_to_the_builder() -> None:
    ignore = (REPOSITORY / "cluster/Dockerfile.dockerignore").read_text().splitlines()
    sent = [line.removeprefix("!") for line in ignore if line.startswith("!")]
    assert copied()
    for source in copied():
        assert (REPOSITORY / source).exists(), source
        assert any(fnmatch(source, pattern) for pattern in sent), source


def test_cuda_is_the_one_that_torch_was_built_with() -> None:
    lock = (REPOSITORY / "requirements/gpu.txt").read_text()
    (runtime,) = re.findall(r"^nvidia-cuda-runtime==(\d+\.\d+)\.", lock, flags=re.MULTILINE)
    assert f"nvidia/cuda:{runtime}." in DOCKERFILE
    assert f"/usr/local/cuda-{runtime} " in DOCKERFILE


def test_both_images_run_as_the_same_user_that_is_not_root() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)
    for target in ("cpu", "gpu"):
        (stage,) = [stage for stage in stages if stage.splitlines()[0].endswith(f" AS {target}")]
        assert re.findall(r"^USER (.+)$", stage, flags=re.MULTILINE) == ["1000"]
    uids = set(re.findall(r"runAsUser: (\d+)", manifests_text()))
    assert uids == {"1000"}


def manifests_text() -> str:
    return "".join(path.read_text() for path in Path(REPOSITORY / "cluster/base").glob("*.yaml"))
