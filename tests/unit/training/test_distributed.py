"""Which interface gloo listens on."""

import os
from types import SimpleNamespace

import psutil
import pytest

from cgd_ray.training import distributed


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")  # so that it is put back afterwards
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")


def with_interfaces(monkeypatch: pytest.MonkeyPatch, **addresses: list[str]) -> None:
    found = {name: [SimpleNamespace(address=each) for each in several] for name, several in addresses.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: found)


@pytest.mark.parametrize(
    ("address", "interface"),
    [("10.0.0.5", "ens5"), ("fe80::1", "ens5"), ("127.0.0.1", "lo"), ("192.168.1.1", None), (None, None)],
)
def test_it_is_the_one_with_the_nodes_address(
    monkeypatch: pytest.MonkeyPatch, address: str | None, interface: str | None
) -> None:
    with_interfaces(monkeypatch, lo=["127.0.0.1"], docker0=["172.17.0.1"], ens5=["10.0.0.5", "fe80::1%ens5"])
    distributed.bind_gloo(address)
    assert os.environ.get("GLOO_SOCKET_IFNAME") == interface


def test_what_a_user_names_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    with_interfaces(monkeypatch, ens5=["10.0.0.5"])
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    distributed.bind_gloo("10.0.0.5")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"


def test_a_master_that_is_named_by_loopback_has_another_address(monkeypatch: pytest.MonkeyPatch) -> None:
    own = distributed._own_address("localhost")
    assert own is None or not own.startswith("127.")
    monkeypatch.setattr(distributed, "_ELSEWHERE", "localhost")  # as on a machine without a network
    assert distributed._own_address("localhost") is None
