"""What training costs beyond a bare torch loop, and what is left of the time when machines fail.

    OMP_NUM_THREADS=1 python jobs/benchmarks/train.py
    python jobs/benchmarks/train.py --parts overhead --pairs 3
    python jobs/benchmarks/train.py --quick --output /tmp/RESULTS.md    # does the script run?

Overhead: runs of ``xtdist train`` (Ray, DeepSpeed, our loop, MLflow, as a user has them) against a
loop of plain torch with the same model, batches, AdamW and clipping, at steps of about 200 ms.
They take turns, whole runs of each; losses must agree. Stalls: what a checkpoint costs the steps,
those included that are slower while it is written. Recovery: from a fault to the next finished
step. Goodput: the share of the time that makes progress, from what was measured before.

Power cuts of hosts need root on Linux (network namespaces). Everything is made in a temporary
folder, 3 GB at most. Ends with 1 if a part failed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shlex
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import common
import train_faults
import train_steps
from train_runs import Place, Shape
from train_steps import OverheadSizes, StallSizes

PARTS = ("overhead", "stalls", "killed workers", "cut hosts", "goodput")
GOODPUT = ("fault", "s", "D + R, s", "W, s", "M, s", "G", "goal")
MTBF_S = 3.1 * 3600
INTERVAL_S = 60.0
GOODPUT_GOAL = 0.99
STEP_S = 0.21


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything; ``step_s``: of a step of one worker by the bare loop."""

    overhead: OverheadSizes = field(default_factory=OverheadSizes)
    stalls: StallSizes = field(default_factory=StallSizes)
    faults: train_faults.Sizes = field(default_factory=train_faults.Sizes)
    step_s: float | None = STEP_S
    documents: int = 300


TINY = Shape(dim=64, depth=2, seq_len=64)
QUICK = Sizes(
    overhead=OverheadSizes(shape=TINY, steps=12, pairs=1, stages=(2,), workers=(1,)),
    stalls=StallSizes(shape=TINY, saves=4, every_s=0.4, workers=(1,)),
    faults=train_faults.Sizes(shape=TINY, every=10, kills=1, cuts=1),
    step_s=None,
    documents=60,
)


@dataclass
class Run:
    """One run of the script. ``stall_share``: at one checkpoint a minute; ``down_s``: by fault,
    the p95 from it to the next step."""

    place: Place
    sizes: Sizes
    stall_share: float | None = None
    down_s: dict[str, float] = field(default_factory=dict)

    def overhead(self) -> str:
        """Steps of ours against those of the bare loop."""
        rows = train_steps.overhead(self.place, self.sizes.overhead)
        return common.table(train_steps.OVERHEAD, rows)

    def stalls(self) -> str:
        """What checkpoints cost."""
        rows = []
        for workers, found, size in train_steps.stall(self.place, self.sizes.stalls):
            rows.append(train_steps.stall_row(workers, found, size))
            print(f"  {rows[-1]}", flush=True)
            self.stall_share = max(self.stall_share or 0.0, found.share(INTERVAL_S))
        return common.table(train_steps.STALL, rows)

    def killed_workers(self) -> str:
        """From a SIGKILL to the next step."""
        faults = self.sizes.faults
        rows = self.place.rows(faults.shape)
        found = train_faults.killed_workers(self.place, faults, rows=rows)
        return self._down(train_faults.WORKER, found, train_faults.WORKER_GOAL_S)

    def cut_hosts(self) -> str:
        """From a power cut to the next step."""
        reason = train_faults.why_no_hosts()
        if reason is not None:
            return f"not measured: {reason}"
        faults = self.sizes.faults
        rows = self.place.rows(faults.shape)
        found = train_faults.cut_hosts(self.place, faults, rows=rows)
        return self._down(train_faults.HOST, found, train_faults.HOST_GOAL_S)

    def _down(self, fault: str, found: list[train_faults.Recovery], goal_s: float) -> str:
        self.down_s[fault] = train_faults.quantile([each.step_s for each in found], 0.95)
        return common.table(train_faults.HEADER, [train_faults.row(fault, found, goal_s)])

    def goodput(self) -> str:
        """The projection from what the other parts measured."""
        if self.stall_share is None or not self.down_s:
            return "not known: needs stalls and killed workers, or cut hosts, in the same run"
        formula = (
            "G = (1 - s) · (1 - (D + R + W/2) / M). s: the stall share at a checkpoint every W. "
            "D + R: from a fault to the next step, the p95 above. W/2: of an interval's work, half "
            f"is lost. M: mean time between failures, {MTBF_S / 3600:.1f} h"
        )
        rows = []
        for fault, down_s in self.down_s.items():
            share = goodput(self.stall_share, down_s=down_s, interval_s=INTERVAL_S, mtbf_s=MTBF_S)
            judged = "reached" if share >= GOODPUT_GOAL else "MISSED"
            rows.append(
                [
                    *(fault, f"{self.stall_share:.2%}", f"{down_s:.1f}", f"{INTERVAL_S:.0f}"),
                    *(f"{MTBF_S:.0f}", f"{share:.2%}", f"at least {GOODPUT_GOAL:.0%}: {judged}"),
                ]
            )
        return f"{formula}\n\n{common.table(GOODPUT, rows)}"


def goodput(stall_share: float, *, down_s: float, interval_s: float, mtbf_s: float) -> float:
    """The share of the time that makes progress, to first order in ``down_s / mtbf_s``."""
    return (1 - stall_share) * (1 - (down_s + interval_s / 2) / mtbf_s)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does the script run?")
    parser.add_argument("--pairs", type=int, help="runs of ours and of the bare loop (default: 5)")
    parser.add_argument("--saves", type=int, help="checkpoints that are timed (default: 15)")
    parser.add_argument("--kills", type=int, help="killed workers (default: 20)")
    parser.add_argument("--cuts", type=int, help="power cuts of hosts (default: 8)")
    parser.add_argument("--note", nargs="+", default=[], help="lines above the tables")
    parser.add_argument("--section", default="Training")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "RESULTS.md")
    return parser.parse_args(argv)


def sizes_of(args: argparse.Namespace) -> Sizes:
    """What the command line wants."""
    sizes = QUICK if args.quick else Sizes()
    wanted = {name: getattr(args, name) for name in ("kills", "cuts")}
    given = {name: value for name, value in wanted.items() if value is not None}
    overhead, stalls = sizes.overhead, sizes.stalls
    return replace(
        sizes,
        overhead=overhead if args.pairs is None else replace(overhead, pairs=args.pairs),
        stalls=stalls if args.saves is None else replace(stalls, saves=args.saves),
        faults=replace(sizes.faults, **given),
    )


def body_of(run: Run, part: str) -> tuple[str, bool]:
    """The text of a part, and whether it failed: the others are measured all the same."""
    try:
        text, failed = getattr(run, part.replace(" ", "_"))(), False
    except Exception as e:
        traceback.print_exc()
        text, failed = f"**FAILED** {type(e).__name__}: {str(e).strip().splitlines()[-1]}", True
    body = f"### {part.capitalize()}\n\n{text}"
    print(body, end="\n\n", flush=True)
    return body, failed


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; the exit code."""
    args = parse(argv)
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that clusters are ended
    with tempfile.TemporaryDirectory(prefix="xtdist-train-") as folder:
        sizes = sizes_of(args)
        place = Place(folder=Path(folder), step_s=sizes.step_s)
        place.make_dataset(documents=sizes.documents)
        run = Run(place, sizes)
        done = [body_of(run, part) for part in PARTS if part in args.parts]
    words = shlex.join(sys.argv[1:] if argv is None else argv)
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("ray", "deepspeed")]
    about = [
        f"machine: {common.machine('cpu')} (every process has 1 thread)",
        f"with: {', '.join(versions)}",
        f"command: `python jobs/benchmarks/train.py {words}`",
        *args.note,
    ]
    common.write_section(
        args.output, args.section, about=about, body="\n\n".join(text for text, _ in done)
    )
    return int(any(failed for _, failed in done))


if __name__ == "__main__":
    sys.exit(main())
