"""A machine's memory, shared memory, processors, limits, and the disks that Ray and we write to."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from xtdist.doctor.finding import Finding, amber, green, red
from xtdist.doctor.limited import limited

GB = 1e9
LEAST_SHM = 0.5 * GB
LEAST_MEMORY = 2 * GB
LEAST_FILES = 4096
GOOD_FILES = 65536
SPILL_STOPS = 0.95  # Ray's local_fs_capacity_threshold
LIMIT_S = 10.0


@dataclass(frozen=True)
class Disk:
    """Of the file system that has ``path``; ``error``: why it can't be told."""

    use: str
    path: str
    free: float = 0.0
    total: float = 0.0
    error: str | None = None


@dataclass(frozen=True)
class Machine:
    """Bytes and counts; ``memory_limit``: a container's, or the machine's own. ``cpus``: that this
    process may use. ``omp``: OMP_NUM_THREADS as it is set."""

    shm: float
    memory_limit: float
    memory_used: float
    cpus: float
    omp: str | None
    files_soft: int
    files_hard: int
    disks: tuple[Disk, ...]


def read_machine(env: Mapping[str, str], *, output: str | None) -> Machine:
    """``output``: the runs' folder."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit, used = read_memory()
    temp = env.get("RAY_TMPDIR") or tempfile.gettempdir()
    cache = Path("~/.cache/xtdist").expanduser()
    places = {"Ray's temporary folder": temp, "cache": str(cache)}
    if output is not None:
        places["output"] = output
    return Machine(
        shm=read_disk("", "/dev/shm").total,
        memory_limit=limit,
        memory_used=used,
        cpus=read_cpus(),
        omp=env.get("OMP_NUM_THREADS"),
        files_soft=_count(soft),
        files_hard=_count(hard),
        disks=tuple(read_disk(use, path) for use, path in places.items()),
    )


def _count(limit: int) -> int:
    return 2**31 if limit == resource.RLIM_INFINITY else limit


def existing(path: Path) -> Path:
    """The folder that is there, of ``path`` and those above it."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def read_disk(use: str, path: str) -> Disk:
    try:
        usage = limited(lambda: shutil.disk_usage(existing(Path(path))), seconds=LIMIT_S)
    except OSError as e:
        return Disk(use, path, error=e.strerror or str(e))
    return Disk(use, path, usage.free, usage.total)


def read_memory(root: Path = Path("/")) -> tuple[float, float]:
    """(limit, in use) in bytes: of this container if it has a limit, else of the machine."""
    rows = dict(r.split(":") for r in (root / "proc/meminfo").read_text().splitlines() if ":" in r)
    total, free = (1024.0 * int(rows[key].split()[0]) for key in ("MemTotal", "MemAvailable"))
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            given = (root / "sys/fs/cgroup" / limit).read_text().strip()
            now = float((root / "sys/fs/cgroup" / used).read_text())
        except (OSError, ValueError):
            continue
        if given.isdigit() and int(given) < total:
            return float(given), min(now, total - free)
    return total, total - free


def read_cpus(root: Path = Path("/")) -> float:
    """Processors of this process: its mask, and its container's share of time."""
    mask = float(len(os.sched_getaffinity(0)))
    try:
        quota, period = (root / "sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return mask
    return mask if quota == "max" else min(mask, int(quota) / int(period))


def judge_machine(m: Machine) -> list[Finding]:
    found = [judge_shm(m), judge_memory(m), judge_files(m), judge_threads(m)]
    return [*found, *(judge_disk(disk) for disk in m.disks)]


def judge_shm(m: Machine) -> Finding:
    what = f"/dev/shm has {m.shm / GB:.1f} GB of {m.memory_limit / GB:.1f} GB memory"
    fix = "docker run --shm-size=8g … (Kubernetes: an emptyDir with medium: Memory at /dev/shm)"
    if m.shm < LEAST_SHM:
        return red("shared memory", f"{what}; Ray's objects and NCCL need more", fix)
    if m.shm < 0.3 * m.memory_limit:
        return amber("shared memory", f"{what}; Ray wants 30 %, and else uses the disk", fix)
    return green("shared memory", what)


def judge_memory(m: Machine) -> Finding:
    share = m.memory_used / m.memory_limit
    what = f"{m.memory_limit / GB:.1f} GB, {share:.0%} in use"
    if m.memory_limit < LEAST_MEMORY:
        fix = "docker run --memory=8g … (Kubernetes: raise resources.limits.memory)"
        return red("memory", f"{what}; a worker alone needs about 2 GB", fix)
    if share > 0.9:
        return amber("memory", f"{what}; Ray kills workers at 95 %", "ps aux --sort=-rss | head")
    return green("memory", what)


def judge_files(m: Machine) -> Finding:
    what = f"{m.files_soft} open files, at most {m.files_hard}"
    fix = "ulimit -n 65536 (docker run --ulimit nofile=65536:65536 …)"
    if m.files_hard < LEAST_FILES:
        return red("open files", f"{what}; Ray runs out of them", fix)
    if m.files_hard < GOOD_FILES:
        return amber("open files", f"{what}; Ray wants {GOOD_FILES} for many workers", fix)
    return green("open files", what)


def judge_threads(m: Machine) -> Finding:
    what = f"{m.cpus:g} CPUs"
    if m.omp is None:
        return green("threads", f"{what}; OMP_NUM_THREADS is not set, Ray sets it for workers")
    if not m.omp.isdigit() or int(m.omp) > max(m.cpus, 1):
        said = f"{what}, but OMP_NUM_THREADS={m.omp[:8]}: threads wait for each other"
        return amber("threads", said, "unset OMP_NUM_THREADS")
    return green("threads", f"{what}, OMP_NUM_THREADS={m.omp}")


def judge_disk(disk: Disk) -> Finding:
    check = f"disk of {disk.use}"
    if disk.error is not None:
        return red(check, f"{disk.path}: {disk.error}", f"ls -ld {disk.path}; mount | tail")
    used = 1 - disk.free / max(disk.total, 1.0)
    what = f"{disk.path}: {disk.free / GB:.1f} of {disk.total / GB:.1f} GB free"
    fix = f"df -h {disk.path}; du -xh --max-depth=2 {disk.path} | sort -h | tail"
    if disk.use.startswith("Ray"):
        fix += " (or another disk: export RAY_TMPDIR=…)"
    if used > SPILL_STOPS or disk.free < 1 * GB:
        return red(check, what, fix)
    if used > 0.9 or disk.free < 10 * GB:
        return amber(check, what, fix)
    return green(check, what)
