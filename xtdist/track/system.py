"""What a node of a run is busy with: CPU, memory, disk, network, GPUs, under MLflow's names
(``system/<node>/cpu_utilization_percentage`` …).

One process of each node writes them to ``<run>/system/<node>/metrics.jsonl``, from a thread and
without MLflow; the driver sends them. So they survive an outage as all other metrics do.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from xtdist.track.records import MetricLog, Tail

FOLDER = "system"
_MB = 10**6
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")


def node_name() -> str:
    """This host's, as a part of metrics' names."""
    return _UNSAFE.sub("_", socket.gethostname())[:60] or "node"


FIRST_S = 1.0  # so that short runs have a sample too


@contextmanager
def system_metrics(run_folder: str | Path, *, every_s: float) -> Iterator[None]:
    """Write this node's metrics every ``every_s`` seconds (0: never) until the end of the block."""
    if every_s <= 0:
        yield
        return
    node, over = node_name(), threading.Event()
    folder = Path(run_folder) / FOLDER / node

    def watch() -> None:
        sample = Sample(node)
        step = max((r.step for r in Tail(folder).poll_all()), default=-1) + 1
        log = MetricLog(folder)
        wait = min(every_s, FIRST_S)
        while not over.wait(wait):
            wait = every_s
            with suppress(OSError, psutil.Error):
                log.append(step, sample.take())
                step += 1
        log.close()

    thread = threading.Thread(target=watch, name="system-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(5.0)


class Sample:
    """Takes samples; the network's are differences to when it was made."""

    def __init__(self, node: str) -> None:
        self._prefix = f"{FOLDER}/{node}/"
        self._net = psutil.net_io_counters()
        self._gpus = _gpus()
        psutil.cpu_percent()  # the first one means nothing

    def take(self) -> dict[str, float]:
        """By MLflow's names; megabytes are 10^6 bytes."""
        memory, disk = psutil.virtual_memory(), psutil.disk_usage("/")
        net = psutil.net_io_counters()
        found = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / _MB,
            "system_memory_usage_percentage": memory.used / memory.total * 100,
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / _MB,
            "disk_available_megabytes": disk.free / _MB,
        }
        if net is not None and self._net is not None:
            sent, received = net.bytes_sent, net.bytes_recv
            found["network_transmit_megabytes"] = (sent - self._net.bytes_sent) / _MB
            found["network_receive_megabytes"] = (received - self._net.bytes_recv) / _MB
        for number, gpu in enumerate(self._gpus):
            found |= {f"gpu_{number}_{name}": value for name, value in _gpu(gpu).items()}
        return {self._prefix + name: float(value) for name, value in found.items()}


def _gpus() -> list[object]:
    """NVML's handles; none without it."""
    try:
        import pynvml  # type: ignore[import-not-found]

        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except Exception:  # not installed, or no driver
        return []


def _gpu(handle: object) -> dict[str, float]:
    import pynvml

    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return {
        "utilization_percentage": pynvml.nvmlDeviceGetUtilizationRates(handle).gpu,
        "memory_usage_megabytes": memory.used / _MB,
        "memory_usage_percentage": memory.used / memory.total * 100,
        "power_usage_watts": pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
    }
