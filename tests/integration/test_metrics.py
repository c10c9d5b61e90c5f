"""What a Prometheus server would scrape from the cluster while a student trains."""

import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import ray

from tests.place import Place
from tests.unit.training.tiny import write_tiny_model

SCRAPED = {"loss", "learning_rate", "gradient_norm", "tokens_per_second", "peak_memory_gib"}


@pytest.fixture
def endpoint() -> Iterator[str]:
    """The metrics address of a cluster."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, _metrics_export_port=port)
    yield f"http://127.0.0.1:{port}/metrics"
    ray.shutdown()


class Scraper:
    """Asks again and again, as Prometheus does, and keeps what it saw of a run."""

    def __init__(self, url: str, run: str) -> None:
        self.seen: dict[str, set[float]] = {}
        self._url = url
        self._line = re.compile(rf'^ray_cgd_training_(\w+){{.*run="{run}".*}} (\S+)$', re.MULTILINE)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._scrape)

    def __enter__(self) -> "Scraper":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _scrape(self) -> None:
        while not self._over.wait(1.0):
            try:
                text = httpx.get(self._url, timeout=5).text
            except httpx.TransportError:
                continue
            for name, value in self._line.findall(text):
                self.seen.setdefault(name, set()).add(float(value))


def test_training_can_be_watched_from_outside(endpoint: str, tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model")
    place = Place(str(tmp_path / "root"), tmp_path / "model", rows=200)
    with Scraper(endpoint, "watched") as scraper:
        result = place.train("watched", epochs=3, batch_size=2)
    assert set(scraper.seen) >= SCRAPED
    assert 0 < min(scraper.seen["loss"]) < 10
    assert result.result.steps == 300
