"""The interface that workers talk over."""

from __future__ import annotations

from xtdist.launch.hosts import choose_interface, interface_of


def test_the_loopback_is_found_by_its_address_and_others_are_not():
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.9") is None


def test_what_the_user_chose_stays(monkeypatch):
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "x")
    monkeypatch.delenv("NCCL_SOCKET_IFNAME")
    choose_interface()
    import os

    assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == ("ib0", "lo")
