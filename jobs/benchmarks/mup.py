"""What muP is for, measured: sizes of activations, and the best learning rate, at several widths.

    OMP_NUM_THREADS=1 python jobs/benchmarks/mup.py            # about 10 minutes on one core
    python jobs/benchmarks/mup.py --quick --output /tmp/x.md   # does the script run?

Writes a section of RESULTS.md and mup.png beside it. The text is the standard library's source.
Ends with 1 if the best rate with muP is not the same, to a step of the grid, at every width.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import common

from xtdist.config import from_mapping
from xtdist.model import ModelConfig
from xtdist.model.mup import at_width
from xtdist.optim import AdamWConfig, MuonConfig
from xtdist.train.coordinate_check import best_losses, coordinate_check, slope

HERE = Path(__file__).resolve().parent
BASE = 64
CHECKED = (64, 128, 256, 512, 1024)
ROWS, LENGTH = 8, 64
Losses = Mapping[tuple[bool, int], Sequence[float]]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--steps", type=int, default=200, help="of each run (default: 200)")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--section", default="muP")
    parser.add_argument("--output", type=Path, default=HERE / "RESULTS.md")
    return parser.parse_args(argv)


def model_of(*, mup: bool) -> ModelConfig:
    """A byte-level decoder at the width of the base."""
    tree = {
        "dim": BASE,
        "depth": 2,
        "heads": BASE // 16,
        "num_tokens": 256,
        "max_seq_len": LENGTH,
        "attention": {"dim_head": 16},
        "mup": {"base_width": BASE} if mup else None,
    }
    return from_mapping(ModelConfig, tree)


def text_batches() -> Callable[[int], Tensor]:
    """Step ↦ bytes (b, n) at places drawn from the step."""
    folder = Path(sysconfig.get_path("stdlib"))
    data = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py"))[:150])
    tokens = torch.tensor(list(data), dtype=torch.long)

    def batch(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        starts = torch.randint(0, len(tokens) - LENGTH - 1, (ROWS,), generator=generator)
        return torch.stack([tokens[at : at + LENGTH + 1] for at in starts.tolist()])

    return batch


def coordinates(widths: Sequence[int]) -> list[list[str]]:
    """Rows of the table of slopes."""
    optims: dict[str, AdamWConfig | MuonConfig] = {
        "AdamW": AdamWConfig(lr=4e-3, weight_decay=0.0),
        "Muon": MuonConfig(lr=0.03, adamw_lr=4e-3, weight_decay=0.0, ns_precision="fp32"),
    }
    rows = []
    for name, optim in optims.items():
        for mup in (True, False):
            sizes = coordinate_check(model_of(mup=mup), optim, widths=widths, steps=3)
            slopes = {part: slope(widths, each) for part, each in sizes.items()}
            hidden = [each for part, each in slopes.items() if part != "logits"]
            shown = [f"{min(hidden):+.2f} … {max(hidden):+.2f}", f"{slopes['logits']:+.2f}"]
            rows.append([name, "muP" if mup else "plain", *shown])
    return rows


def transfer(
    widths: Sequence[int], rates: Sequence[float], *, steps: int
) -> dict[tuple[bool, int], list[float]]:
    """Losses at each rate, for (with muP, width)."""
    batches, found = text_batches(), {}
    for mup in (True, False):
        for width in widths:
            config = at_width(model_of(mup=mup), width)
            optim = AdamWConfig(weight_decay=0.0)
            found[mup, width] = best_losses(config, optim, batches, rates=rates, steps=steps)
            print(mup, width, [round(loss, 3) for loss in found[mup, width]], flush=True)
    return found


def best_rate(losses: Sequence[float], rates: Sequence[float]) -> float:
    """The rate of the least loss."""
    return rates[min(range(len(rates)), key=lambda i: losses[i])]


def picture(losses: Losses, rates: Sequence[float], path: Path) -> None:
    """Loss over the rate, a line for each width; with muP on the left."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    fields = figure.subplots(1, 2, sharey=True)
    finite = [loss for each in losses.values() for loss in each if loss < 8]
    for axes, mup in zip(fields, (True, False), strict=True):
        widths = sorted(width for with_mup, width in losses if with_mup == mup)
        for i, width in enumerate(widths):
            shade = str(0.7 * (1 - (i + 1) / len(widths)))
            axes.plot(rates, losses[mup, width], marker="o", ms=4, color=shade, label=str(width))
        axes.set_xscale("log", base=2)
        axes.set_title("muP" if mup else "without", fontsize=10)
        axes.set_xlabel("optim.lr")
        axes.grid(alpha=0.25)
    fields[0].set_ylabel("loss (nats per byte)")
    fields[0].set_ylim(min(finite) - 0.05, min(max(finite), min(finite) + 1.5))
    fields[1].legend(title="width", frameon=False)
    figure.savefig(path, metadata={"Software": None})


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write, and say whether the best rate moved."""
    args = parse(argv)
    rates = [2.0**e for e in (range(-9, -5) if args.quick else range(-11, -3))]
    widths, steps = ([64, 128], 6) if args.quick else (args.widths, args.steps)
    slopes = coordinates(CHECKED[:2] if args.quick else CHECKED)
    losses = transfer(widths, rates, steps=steps)
    rows = []
    for (mup, width), each in losses.items():
        shown = [f"{loss:.3f}" if math.isfinite(loss) else "-" for loss in each]
        best = f"2^{math.log2(best_rate(each, rates)):.0f}"
        rows.append(["muP" if mup else "plain", str(width), *shown, best])
    head = ["", "width", *(f"2^{math.log2(rate):.0f}" for rate in rates), "best"]
    body = "Slope of log mean |activation| over log width, 64 to 1024, after 3 steps:\n\n"
    body += common.table(["", "", "attention, feed-forward", "logits"], slopes)
    body += f"\n\nLoss over the last tenth of {steps} steps of AdamW at each rate (mup.png):\n\n"
    body += common.table(head, rows)
    config = dataclasses.replace(model_of(mup=True), mup=None)
    about = (
        common.machine("cpu"),
        f"{config.depth} blocks, heads of {config.attention.dim_head}, {ROWS} rows of {LENGTH} "
        f"bytes a step, the standard library's source, one seed; base width {BASE}",
        *(["quick"] if args.quick else []),
    )
    common.write_section(args.output, args.section, about=about, body=body)
    picture(losses, rates, args.output.parent / "mup.png")
    logs = [math.log2(best_rate(losses[True, width], rates)) for width in widths]
    return int(not args.quick and max(logs) - min(logs) > 1)


if __name__ == "__main__":
    sys.exit(main())
