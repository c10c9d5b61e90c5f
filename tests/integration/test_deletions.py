"""A role that may write and not delete: S3 answers with success, and every delete of ours notices all the same."""

from collections.abc import Iterator

import pytest

from cgd_ray.config.run import StorageSection
from cgd_ray.errors import CgdError
from cgd_ray.stages.definitions import Stages
from cgd_ray.stages.resolved import open_run
from cgd_ray.storage import compaction
from cgd_ray.storage.compaction import FEW_PARTS, _begun
from cgd_ray.storage.filesystem import NotDeletedError, Store, require_writable
from cgd_ray.storage.lease import Lease
from cgd_ray.storage.schemas import ENCODED
from cgd_ray.storage.tables import Table
from cgd_ray.training.dataset.encode import Counts, EncodedExamples
from cgd_ray.training.launch.ray_train import _require_replaceable
from cgd_ray.training.launch.training_run import TrainingRun
from tests.faulty_s3 import FaultyProxy, faulty_proxy
from tests.servers import S3Server
from tests.unit.generation.test_planning import recipe
from tests.unit.storage.test_compaction import fill, joined

PARTS = FEW_PARTS + 6
BEAT = 0.2


@pytest.fixture
def proxy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    with faulty_proxy(s3.port, seed=0) as proxy:
        proxy.keeps_all = True
        yield proxy


@pytest.fixture
def store(s3: S3Server, proxy: FaultyProxy, request: pytest.FixtureRequest) -> Store:
    folder = request.node.name.replace("_", "-")
    return Store(s3.url(folder), StorageSection(endpoint_url=f"http://127.0.0.1:{proxy.port}"))


@pytest.fixture
def stages(store: Store) -> Stages:
    return open_run(recipe(store.root), store).stages  # type: ignore[arg-type]


def test_merges_do_not_multiply_rows(
    stages: Stages, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = stages.draft.results
    fill(table, PARTS)
    before = table.read()
    size = max(table.sizes().values())
    monkeypatch.setattr(compaction, "_GROUP_BYTES", 4 * size)
    for _ in range(3):
        joined(stages).compacted()
    said = capsys.readouterr().out
    assert "small parts are not merged" in said
    assert "s3:DeleteObject" in said
    rows = sum(len(part) for part in table.batches())
    assert len(before) < rows < 1.1 * len(before)  # of one group of parts, once
    assert table.read().equals(before)
    proxy.keeps_all = False
    joined(stages).compacted()
    assert sum(len(part) for part in table.batches()) == len(before)
    assert len(table.parts()) < PARTS / 3
    assert _begun(table) == []


@pytest.mark.parametrize("name", ["folder", "folder/file"])
def test_what_is_not_deleted_is_named(store: Store, name: str) -> None:
    store.write("folder/file", b"")
    for delete in (lambda: store.remove(name), lambda: store.remove_files(["folder/file", "folder/none"])):
        with pytest.raises(NotDeletedError, match=r"/folder/file: AccessDenied: \d of \d files are not deleted. Fix:"):
            delete()
    assert not store.discard(name)
    assert store.exists("folder/file")


def test_a_root_that_keeps_all_is_said_before_a_run(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    require_writable(store)
    assert "files can be written and not deleted" in capsys.readouterr().out


def test_a_student_that_cannot_be_replaced_is_said_before_it_is_trained(store: Store, proxy: FaultyProxy) -> None:
    encoded = EncodedExamples(Table(store, "encoded", "0", ENCODED), Counts())
    plan = TrainingRun(open_run(recipe(store.root), store), encoded)  # type: ignore[arg-type]
    _require_replaceable(plan)
    store.write(f"{plan.student}/manifest.json", b"{}")
    with pytest.raises(CgdError, match=r"runs/r/student: is a student of other settings.*Fix: .*s3:DeleteObject"):
        _require_replaceable(plan)
    proxy.keeps_all = False
    _require_replaceable(plan)


def test_nobody_waits_for_a_lease_that_was_given_back_and_not_deleted(store: Store) -> None:
    first = Lease(store, "folder", BEAT)
    assert not first.take(wait=False)
    first.give_back()
    second = Lease(store, "folder", BEAT)
    assert not second.take(wait=False)
    second.give_back()
