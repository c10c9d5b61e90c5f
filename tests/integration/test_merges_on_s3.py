"""A merge whose command was killed at its very end, on S3: the next command ends it, and the one after that goes on."""

import pytest

from cgd_ray.config.run import StorageSection
from cgd_ray.storage.compaction import _begun, _end_merges, merge_parts
from cgd_ray.storage.filesystem import Store
from cgd_ray.storage.schemas import RESULTS
from cgd_ray.storage.tables import Table
from tests.servers import S3Server

PARTS = 12


class KilledError(Exception):
    pass


def row(number: int) -> dict[str, object]:
    made = {"prompt_id": f"{number:04x}", "sample": 0, "parent": "p", "status": "ok", "text": "t", "attempt": 1}
    return dict.fromkeys(RESULTS.names) | {"model": "m"} | made


@pytest.mark.parametrize("killed_at", ["remove", "remove_files"])
def test_a_note_whose_sources_are_gone_is_ended(s3: S3Server, monkeypatch: pytest.MonkeyPatch, killed_at: str) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    store = Store(s3.url(f"merges-{killed_at.replace('_', '-')}"), StorageSection(endpoint_url=s3.endpoint))
    table = Table(store, "draft", "f" * 16, RESULTS)
    for number in range(PARTS):
        table.write_part(f"part-0001-a-{number:06d}", [row(number)])
    before = table.read()

    def killed(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as broken:
        broken.setattr(Store, killed_at, killed)
        with pytest.raises(KilledError):
            merge_parts(table, store.sizes(table.folder, ".parquet"))
    assert len(_begun(table)) == 1
    _end_merges(table)
    assert _begun(table) == []
    assert len(table.parts()) == 1
    assert table.read().equals(before)
