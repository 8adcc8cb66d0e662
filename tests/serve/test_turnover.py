"""How long a queue takes, against a simulated server."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine_thread import ScriptedEngine, job, tokens

from xtdist.serve.engine_thread import EngineThread
from xtdist.serve.turnover import Turnover


@settings(deadline=None, max_examples=40)
@given(
    slots=st.integers(1, 32),
    service_steps=st.integers(16, 100),
    step_s=st.floats(0.01, 0.5),
    together=st.booleans(),
)
def test_the_wait_is_that_of_a_server_with_so_many_slots(
    slots: int, service_steps: int, step_s: float, together: bool
) -> None:
    """Whose requests all take as long, begun together or one after the other. What is told between
    two turns is the mean of a few rounds: no more than a round too much."""
    turnover = Turnover()
    ends = [service_steps * (1 if together else (i + 1) / slots) for i in range(slots)]
    for step in range(max(8, 256 // slots) * service_steps):
        turns = 0
        for slot, end in enumerate(ends):
            if step >= end:
                ends[slot] += service_steps
                turns += 1
        turnover.note(turns, step_s)
    round_s = service_steps * step_s
    truth = round_s / slots
    told = turnover.wait_s(10)
    assert 0.6 * 10 * truth < told < 1.4 * 10 * truth + round_s


def test_nothing_is_known_before_a_few_turns() -> None:
    turnover = Turnover()
    turnover.note(7, 500.0)
    assert turnover.wait_s(9) == 0
    turnover.note(1, 1.0)
    assert turnover.wait_s(1) > 0


def test_the_engine_s_thread_tells_it_of_turns() -> None:
    seconds = iter(range(10**6))
    thread = EngineThread(ScriptedEngine(), name="x", clock=lambda: float(next(seconds)))

    async def main() -> None:
        for _ in range(8):
            one = job(range(1, 4))
            thread.submit(one)
            await tokens(one)

    try:
        asyncio.run(asyncio.wait_for(main(), 30))
    finally:
        thread.stop()
    assert thread.turnover.wait_s(3) == pytest.approx(3.0)  # a second, by the clock, for each turn
