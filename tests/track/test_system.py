import time
from pathlib import Path

import psutil

from xtdist.track.records import read_series
from xtdist.track.system import FOLDER, node_name, system_metrics


def measured(folder: Path) -> dict[str, list[int]]:
    return {n: s.steps for n, s in read_series(folder / FOLDER / node_name()).items()}


def watch(folder: Path, samples: int) -> None:
    with system_metrics(folder, every_s=0.01):
        deadline = time.monotonic() + 30
        while len(next(iter(measured(folder).values()), [])) < samples:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_node_is_measured_under_mlflows_names_and_a_restart_goes_on_counting(
    tmp_path: Path,
) -> None:
    watch(tmp_path, 2)
    before = len(next(iter(measured(tmp_path).values())))
    watch(tmp_path, before + 2)
    prefix = f"system/{node_name()}/"
    found = read_series(tmp_path / FOLDER / node_name())
    assert found[prefix + "cpu_utilization_percentage"].steps == list(
        range(len(found[prefix + "cpu_utilization_percentage"].steps))
    )
    used = found[prefix + "system_memory_usage_percentage"].values[-1]
    memory = psutil.virtual_memory()
    assert abs(used - memory.used / memory.total * 100) < 20
    assert prefix + "network_receive_megabytes" in found


def test_zero_seconds_measure_nothing(tmp_path: Path) -> None:
    with system_metrics(tmp_path, every_s=0):
        pass
    assert not (tmp_path / FOLDER).exists()
