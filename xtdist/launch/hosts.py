"""Which network interface the workers talk over.

gloo looks up the host's name and takes what it finds, often the loopback, so that hosts can't reach
each other; NCCL guesses. Here it is the interface of the address that Ray reaches the node at.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_SIOCGIFADDR = 0x8915


def interface_of(address: str) -> str | None:
    """The interface that has the IPv4 ``address``; None if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                reply = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
            except OSError:  # it has no address
                continue
            if socket.inet_ntoa(reply[20:24]) == address:
                return name
    return None


def choose_interface() -> None:
    """Set the variables of this process, where the user has not."""
    import ray

    name = interface_of(ray.util.get_node_ip_address())
    for variable in VARIABLES:
        if name is not None:
            os.environ.setdefault(variable, name)


class HostsBackend(_TorchBackend):
    """Ray's, with the interface chosen on every worker first."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(choose_interface)
        super().on_start(worker_group, backend_config)


@dataclass
class HostsConfig(TorchConfig):
    """A process group between hosts."""

    @property
    def backend_cls(self) -> type[HostsBackend]:
        return HostsBackend
