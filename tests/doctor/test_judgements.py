"""Each judgement on both sides of its line, on facts that were made up."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from xtdist.doctor.collective import judge_reduce
from xtdist.doctor.doors import Doors, judge_doors
from xtdist.doctor.finding import Finding
from xtdist.doctor.gpus import Gpu, GpuFacts, judge_gpus, parse_gpus
from xtdist.doctor.machine import (
    Disk,
    Machine,
    judge_disk,
    judge_files,
    judge_memory,
    judge_shm,
    judge_threads,
)
from xtdist.doctor.network import judge_clocks, judge_reach, judge_room
from xtdist.doctor.storage import Place, PlaceFacts, judge_place, judge_shared
from xtdist.doctor.surroundings import (
    Surroundings,
    judge_ports,
    judge_proxies,
    judge_sessions,
    judge_token,
    judge_variables,
)
from xtdist.doctor.target import Target
from xtdist.doctor.tracking import TrackingFacts, judge_tracking
from xtdist.doctor.versions import judge_same, judge_versions, read_versions, wanted_versions

MACHINE = Machine(
    shm=30e9,
    memory_limit=64e9,
    memory_used=10e9,
    cpus=16,
    omp=None,
    files_soft=65536,
    files_hard=65536,
    disks=(),
)
AROUND = Surroundings(
    proxies=(),
    proxy_spares_local=False,
    leftovers=(),
    dead_address=None,
    sessions=1,
    stale=None,
    auth_mode="token",
    token_mode=0o600,
    token_missing=False,
    ports_taken=(),
)
H100 = Gpu("NVIDIA H100", 81559, 0, 0, 0.0)
GPUS = GpuFacts((H100,) * 2, "12.8", "570.1", 0, "12.8", 2, "2.27.3")


def worst(found: Finding | list[Finding]) -> str:
    levels = [f.level for f in (found if isinstance(found, list) else [found])]
    return max(levels, key=["green", "amber", "red"].index)


@pytest.mark.parametrize(
    ("judge", "changes", "level"),
    [
        (judge_shm, {}, "green"),
        (judge_shm, {"shm": 10e9}, "amber"),
        (judge_shm, {"shm": 64e6}, "red"),  # docker's
        (judge_memory, {}, "green"),
        (judge_memory, {"memory_used": 60e9}, "amber"),
        (judge_memory, {"memory_limit": 1e9, "memory_used": 0.0}, "red"),
        (judge_files, {}, "green"),
        (judge_files, {"files_hard": 20000}, "amber"),
        (judge_files, {"files_hard": 1024}, "red"),
        (judge_threads, {}, "green"),
        (judge_threads, {"omp": "16"}, "green"),
        (judge_threads, {"omp": "17"}, "amber"),
        (judge_threads, {"omp": "many"}, "amber"),
    ],
)
def test_a_machine(judge: Any, changes: dict[str, Any], level: str) -> None:
    assert judge(dataclasses.replace(MACHINE, **changes)).level == level


@pytest.mark.parametrize(
    ("free", "level"), [(500e9, "green"), (80e9, "amber"), (40e9, "red"), (0.5e9, "red")]
)
def test_a_disk_of_a_terabyte(free: float, level: str) -> None:
    assert judge_disk(Disk("output", "/runs", free, 1000e9)).level == level


def test_a_disk_that_does_not_answer() -> None:
    assert judge_disk(Disk("output", "/nfs", error="no answer in 10 s")).level == "red"


@pytest.mark.parametrize(
    ("changes", "wanted", "level"),
    [
        ({}, 2, "green"),
        ({}, 3, "red"),
        ({"gpus": None, "torch_sees": 0}, 0, "green"),
        ({"gpus": None, "torch_sees": 0}, 1, "red"),
        ({"torch_cuda": None, "torch_sees": 0}, 0, "red"),
        ({"torch_cuda": "13.0"}, 0, "red"),
        ({"torch_cuda": "12.9"}, 0, "amber"),
        ({"torch_sees": 1}, 0, "red"),
        ({"torch_sees": None, "torch_cuda": None}, 0, "red"),
        ({"nccl": None}, 0, "red"),
        ({"processes": 1}, 0, "amber"),
        ({"gpus": (dataclasses.replace(H100, used_mb=9000), H100)}, 0, "amber"),
        ({"gpus": (dataclasses.replace(H100, ecc_errors=3), H100)}, 0, "red"),
    ],
)
def test_gpus(changes: dict[str, Any], wanted: int, level: str) -> None:
    assert worst(judge_gpus(dataclasses.replace(GPUS, **changes), wanted=wanted)) == level


def test_the_table_of_nvidia_smi_is_read() -> None:
    rows = "NVIDIA H100 80GB HBM3, 81559, 512, 0, 37\nNVIDIA T4, 15360, 0, [N/A], [N/A]\n"
    first, second = parse_gpus(rows)
    assert first == Gpu("NVIDIA H100 80GB HBM3", 81559, 512, 0, 0.37)
    assert (second.ecc_errors, second.busy) == (None, 0.0)


@pytest.mark.parametrize(
    ("judge", "changes", "level"),
    [
        (judge_proxies, {}, "green"),
        (judge_proxies, {"proxies": ("http_proxy",)}, "amber"),
        (judge_proxies, {"proxies": ("http_proxy",), "proxy_spares_local": True}, "green"),
        (judge_variables, {}, "green"),
        (judge_variables, {"leftovers": ("RAY_memory_monitor_refresh_ms",)}, "amber"),
        (judge_variables, {"dead_address": "10.0.0.9:6379"}, "red"),
        (judge_sessions, {}, "green"),
        (judge_sessions, {"sessions": 200}, "amber"),
        (judge_sessions, {"stale": "/tmp/ray/ray_current_cluster"}, "amber"),
        (judge_token, {}, "green"),
        (judge_token, {"auth_mode": None}, "amber"),
        (judge_token, {"auth_mode": "disabled"}, "red"),
        (judge_token, {"token_mode": 0o644}, "red"),
        (judge_token, {"token_missing": True}, "red"),
    ],
)
def test_surroundings(judge: Any, changes: dict[str, Any], level: str) -> None:
    assert judge(dataclasses.replace(AROUND, **changes)).level == level


def test_ports() -> None:
    assert judge_ports(()).level == "green"
    assert "8265" in judge_ports((8265,)).what


@pytest.mark.parametrize(
    ("facts", "level"),
    [
        (TrackingFacts("http://m", 200), "green"),
        (TrackingFacts("http://m", 200, ahead_s=4000.0), "amber"),
        (TrackingFacts("http://m", 401, "read", "HTTP 401"), "red"),
        (TrackingFacts("http://m", None, "read", "Connection refused"), "red"),
        (TrackingFacts("http://m", 500, "write", "HTTP 500"), "red"),
    ],
)
def test_mlflow(facts: TrackingFacts, level: str) -> None:
    assert worst(judge_tracking(facts, user=True)) == level


def test_places() -> None:
    place = Place("output", "/runs", write=True)
    assert judge_place(PlaceFacts(place, "/runs")).level == "green"
    broken = judge_place(PlaceFacts(place, "/runs", error="Read-only file system"))
    assert (broken.level, "output" in str(broken.fix)) == ("red", True)


def test_a_folder_that_only_looks_shared() -> None:
    both = {"a": ("a", "b"), "b": ("a", "b")}
    assert judge_shared("output", "/runs", both).level == "green"
    alone = judge_shared("output", "/runs", {"a": ("a",), "b": ("b",)})
    assert alone.level == "red"
    assert "a does not see what b wrote" in alone.what


@pytest.mark.parametrize(
    ("skew", "exact", "level"),
    [(0.2, 0.01, "green"), (-3.0, 2.5, "green"), (-3.0, 0.1, "amber"), (3600.0, 0.1, "red")],
)
def test_clocks(skew: float, exact: float, level: str) -> None:
    found = judge_clocks({"a": (0.0, 0.01), "b": (skew, exact)})
    assert found.level == level
    assert ("b is" in found.what) == (level != "green")


def test_reach() -> None:
    assert judge_reach({"a": (), "b": ()}).level == "green"
    assert "nc -vz 10.0.0.2 41000" in str(judge_reach({"a": ("10.0.0.2:41000",)}).fix)


@pytest.mark.parametrize(
    ("target", "level"),
    [
        (Target(workers=4, cpus=2), "green"),
        (Target(workers=5, cpus=2), "red"),
        (Target(workers=2, gpus=True), "green"),
        (Target(workers=3, gpus=True), "red"),
    ],
)
def test_room(target: Target, level: str) -> None:
    assert worst(judge_room(target, {"CPU": 8.0, "GPU": 2.0})) == level
    assert judge_room(Target(), {}) == []


@pytest.mark.parametrize(
    ("doors", "level"),
    [
        (Doors(401, False, False), "green"),
        (Doors(None, False, None), "green"),
        (Doors(401, False, True), "amber"),
        (Doors(401, None, False), "amber"),
        (Doors(200, False, False), "red"),
        (Doors(401, True, False), "red"),
    ],
)
def test_the_doors_of_a_cluster(doors: Doors, level: str) -> None:
    assert worst(judge_doors(doors)) == level


@pytest.mark.parametrize(
    ("outcomes", "level"),
    [((True, True), "green"), ((True, None), "red"), ((True, False), "red")],
)
def test_an_all_reduce(outcomes: tuple[bool | None, ...], level: str) -> None:
    found = judge_reduce("gloo", {f"rank {i}": o for i, o in enumerate(outcomes)})
    assert found.level == level
    assert ("rank 1" in found.what) == (level == "red")


def test_versions_of_this_environment_and_others() -> None:
    have = read_versions()
    wanted = {"torch": ">=2", "ray": "==2.60.*"}
    assert worst(judge_versions(have, wanted)) == "green"
    (old,) = judge_versions({**have, "torch": "1.13.1"}, wanted)
    assert (old.level, "torch 1.13.1" in old.what) == ("red", True)
    (gone,) = judge_versions({**have, "ray": None}, wanted)
    assert "not installed" in gone.what
    assert {"python", "torch", "ray", "deepspeed", "pyarrow", "mlflow"} <= wanted_versions().keys()


def test_versions_that_differ_between_nodes() -> None:
    one = {"ray": "2.60.0", "torch": "2.13.0"}
    assert worst(judge_same({"a": one, "b": one})) == "green"
    (found,) = judge_same({"a": one, "b": {**one, "torch": "2.12.0"}})
    assert "torch differs: 2.13.0 on a; 2.12.0 on b" in found.what
