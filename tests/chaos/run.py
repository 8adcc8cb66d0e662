"""Chaos for as long as one likes: ``python tests/chaos/run.py --minutes 60 --seed 7``.

Rounds of one run each with every kind of fault, in another order and at other steps every time.
After each round the run is compared with its fault-free twin. Ends with 1 at the first difference,
and leaves the folder.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
from harness import Services, open_services
from injections import FAULTS, play, schedule, steps_for


def one_round(world: Services, seed: int) -> list[str]:
    """What is wrong after one round."""
    plan = schedule(seed, [*FAULTS, "worker_killed"])
    twin = world.trouble(f"twin-{seed}", steps=steps_for(plan))
    play(twin, [])
    run = world.trouble(f"troubled-{seed}", steps=twin.steps)
    wrong = [f"{kind} did not happen" for kind in play(run, plan)]
    if run.losses() != twin.losses():
        wrong.append("losses differ from the twin's")
    if run.weights() != twin.weights():
        wrong.append("weights differ from the twin's")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="xtdist-chaos-"))
    world = open_services(root)
    until, seed = time.monotonic() + 60 * given.minutes, given.seed
    try:
        while time.monotonic() < until:
            print(f"round of seed {seed}", flush=True)
            if wrong := one_round(world, seed):
                print(f"seed {seed}: {'; '.join(wrong)}; see {root}", flush=True)
                return 1
            seed += 1
    finally:
        world.close()
    print(f"{seed - given.seed} rounds, all as their twins")
    return 0


if __name__ == "__main__":
    sys.exit(main())
