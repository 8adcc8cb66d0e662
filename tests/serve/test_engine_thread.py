"""The thread around an engine, with an engine that does what the test says."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from xtdist.config import ConfigError
from xtdist.decode import GenerationParams, Output, QueueFull, RequestFailed
from xtdist.serve.engine_thread import EngineThread
from xtdist.serve.errors import ApiError
from xtdist.serve.job import Job


class ScriptedEngine:
    """Gives every request one token per step, its own prompt's tokens in order, then the end.

    Prompts that begin with -1, -2, -3 are refused as wrong, for a full queue, by a crash;
    a step with a request whose prompt begins with -4 raises; -5 never ends; -6 is forgotten
    without an end; -7 is known for ever, but is no work; -8 fails alone.
    """

    def __init__(self, max_requests: int = 100) -> None:
        self.requests: dict[str, list[int]] = {}
        self.aborted: list[str] = []
        self.salts: list[str] = []
        self.max_requests = max_requests
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()

    @property
    def has_work(self):
        return any(tokens[0] != -7 for tokens in self.requests.values())

    @property
    def waiting(self):
        return ()

    def stats(self):
        return None

    def add(self, prompt_ids, params, *, request_id=None, salt=""):
        self.salts.append(salt)
        self.threads.add(threading.get_ident())
        if prompt_ids[0] == -1:
            raise ConfigError("top_k: not with this model")
        if prompt_ids[0] == -2 or len(self.requests) >= self.max_requests:
            raise QueueFull("full")
        if prompt_ids[0] == -3:
            raise KeyError("canary")
        self.requests[request_id] = list(prompt_ids)
        return request_id

    def step(self):
        self.gate.wait()
        self.threads.add(threading.get_ident())
        outputs = []
        for name in [name for name, tokens in self.requests.items() if tokens[0] == -8]:
            del self.requests[name]
            raise RequestFailed(name)
        for name, tokens in list(self.requests.items()):
            if tokens[0] == -6:
                del self.requests[name]
            if tokens[0] in (-6, -7):
                continue
            if tokens[0] == -4:
                raise RuntimeError("device lost")
            token = tokens[0] if tokens[0] == -5 else tokens.pop(0)
            done = not tokens
            outputs.append(Output(name, 0, (token,), finish_reason="stop" if done else None))
            if done:
                del self.requests[name]
        time.sleep(0.001)
        return outputs

    def knows(self, request_id):
        return request_id in self.requests

    def abort(self, request_id):
        self.aborted.append(request_id)
        return self.requests.pop(request_id, None) is not None


def job(*prompts, timeout_s=30.0):
    return Job([list(p) for p in prompts], GenerationParams(), timeout_s)


async def tokens(job):
    got = [[] for _ in job.prompts]
    async for pieces in job.pieces():
        for piece in pieces:
            got[piece.prompt] += piece.output.token_ids
    return got


@pytest.fixture
def engine():
    return ScriptedEngine()


@pytest.fixture
def thread(engine):
    thread = EngineThread(engine, name="scripted")
    yield thread
    engine.gate.set()
    thread.stop()


def run(main):
    return asyncio.run(asyncio.wait_for(main, 30))


def test_every_job_gets_its_own_tokens_in_order(thread, engine):
    jobs = [job(range(1, n), range(10 * n, 10 * n + 5)) for n in range(3, 40)]

    async def main():
        for j in jobs:
            thread.submit(j)
        return await asyncio.gather(*map(tokens, jobs))

    assert run(main()) == [j.prompts for j in jobs]
    assert thread.running == 0
    assert not engine.aborted
    assert len(engine.threads) == 1
    assert engine.threads != {threading.get_ident()}


def test_a_step_wakes_the_event_loop_once_for_all_its_jobs(thread, engine):
    wakes = []

    async def main():
        loop = asyncio.get_running_loop()
        plain = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *a: (wakes.append(a), plain(*a))[1]
        engine.gate.clear()
        jobs = [job([1, 2, 3]) for _ in range(20)]
        for j in jobs:
            thread.submit(j)
        engine.gate.set()
        await asyncio.gather(*map(tokens, jobs))

    run(main())
    assert len(wakes) <= thread.steps + 21  # at most one per step (admissions post nothing)
    assert thread.steps < 20


@pytest.mark.parametrize(
    ("first", "status", "code"),
    [(-1, 400, "invalid_value"), (-2, 503, "queue_full"), (-3, 500, "internal_error")],
)
def test_a_refused_job_fails_alone_and_leaves_nothing_behind(thread, engine, first, status, code):
    async def main():
        good, bad = job([1, 2, 3]), job([4, 5], [first, 1])
        thread.submit(good)
        thread.submit(bad)
        assert await tokens(good) == [[1, 2, 3]]
        with pytest.raises(ApiError) as e:
            await tokens(bad)
        return e.value

    error = run(main())
    assert (error.status, error.code) == (status, code)
    assert "canary" not in error.message
    assert not thread.broken
    assert not engine.requests
    assert thread.running == 0


def test_a_full_queue_says_when_to_come_back(thread, engine):
    engine.max_requests = 0

    async def main():
        j = job([1])
        thread.submit(j)
        await tokens(j)

    with pytest.raises(ApiError) as e:
        run(main())
    assert int(e.value.headers["Retry-After"]) >= 1


def test_a_job_past_its_deadline_is_aborted_and_told_so(thread, engine):
    async def main():
        endless, good = job([-5], timeout_s=0.05), job([1, 2])
        thread.submit(endless)
        thread.submit(good)
        assert await tokens(good) == [[1, 2]]
        with pytest.raises(ApiError) as e:
            await tokens(endless)
        return e.value

    error = run(main())
    assert (error.status, error.code) == (504, "deadline_exceeded")
    assert len(engine.aborted) == 1
    assert not engine.requests


def test_the_deadline_is_kept_while_the_engine_has_nothing_to_do(thread, engine):
    async def main():
        stuck = job([-7], timeout_s=0.05)
        thread.submit(stuck)
        with pytest.raises(ApiError) as e:
            await tokens(stuck)
        return e.value.code

    assert run(main()) == "deadline_exceeded"
    assert thread.running == 0


def test_a_job_that_the_engine_has_forgotten_ends_with_an_error(thread, engine):
    async def main():
        busy, lost = job([-5]), job([-6], [1, 2])
        thread.submit(busy)
        thread.submit(lost)
        with pytest.raises(ApiError) as e:
            await tokens(lost)
        thread.cancel(busy)
        return e.value.code

    assert run(main()) == "internal_error"
    assert not thread.broken


def test_a_job_with_a_request_that_fails_in_a_step_ends_alone(thread, engine):
    async def main():
        good, bad = job([1, 2, 3]), job([4, 5, 6, 7, 8], [9, -8])
        thread.submit(good)
        thread.submit(bad)
        assert await tokens(good) == [[1, 2, 3]]
        with pytest.raises(ApiError) as e:
            await tokens(bad)
        return e.value.code

    assert run(main()) == "internal_error"
    assert not thread.broken
    assert not engine.requests


def test_a_cancelled_job_stops_before_the_next_step(thread, engine):
    async def main():
        endless = job([-5], [-5])
        thread.submit(endless)
        async for _ in endless.pieces():
            break
        engine.gate.clear()
        thread.cancel(endless)
        thread.cancel(endless)
        steps = thread.steps
        engine.gate.set()
        while engine.requests:
            await asyncio.sleep(0.001)
        return thread.steps - steps

    assert run(main()) <= 1
    assert thread.running == 0
    assert len(engine.aborted) == 2


def test_cancelling_before_admission_leaves_nothing(thread, engine):
    async def main():
        engine.gate.clear()
        first, second = job([1]), job([-5])
        thread.submit(first)
        thread.submit(second)
        thread.cancel(second)
        engine.gate.set()
        assert await tokens(first) == [[1]]
        while thread.running:
            await asyncio.sleep(0.001)

    run(main())
    assert not engine.requests


def test_a_crash_of_the_engine_fails_every_job_and_all_later_ones(thread, engine):
    async def main():
        jobs = [job([-5]), job([1, -4])]
        for j in jobs:
            thread.submit(j)
        for j in jobs:
            with pytest.raises(ApiError) as e:
                await tokens(j)
            assert e.value.code == "internal_error"
            assert "device" not in e.value.message
        with pytest.raises(ApiError):
            thread.submit(job([1]))

    run(main())
    assert thread.broken


def test_a_request_whose_first_step_crashes_takes_nobody_along(thread, engine):
    async def main():
        others = job([-5])
        thread.submit(others)
        await until_steps(thread, 3)
        for _ in range(3):
            with pytest.raises(ApiError) as e:
                await tokens(submitted(thread, job([-4])))
            assert e.value.code == "internal_error"
            assert await tokens(submitted(thread, job([1, 2]))) == [[1, 2]]
        thread.cancel(others)

    run(main())
    assert not thread.broken


def test_an_engine_that_crashes_with_whatever_it_is_given_has_failed(thread, engine):
    async def main():
        for _ in range(4):
            with pytest.raises(ApiError):
                await tokens(submitted(thread, job([-4])))
        with pytest.raises(ApiError) as e:
            thread.submit(job([1]))
        return e.value.code

    assert run(main()) == "unhealthy"
    assert thread.broken
    assert thread.steps == 0


def submitted(thread, job):
    thread.submit(job)
    return job


async def until_steps(thread, count):
    while thread.steps < count:
        await asyncio.sleep(0.001)


def test_stopping_an_idle_thread_returns():
    thread = EngineThread(ScriptedEngine(), name="idle")
    thread.stop()

    async def main():
        thread = EngineThread(ScriptedEngine(), name="used")
        j = job([1])
        thread.submit(j)
        await tokens(j)
        thread.stop()

    run(main())


def test_a_job_that_nobody_reads_is_ended_and_others_go_on(engine):
    thread = EngineThread(engine, name="unread", max_unread_tokens=20)

    async def main():
        endless, read = job([-5]), job(range(1, 60))
        thread.submit(endless)
        thread.submit(read)
        got = await tokens(read)
        while thread.running:
            await asyncio.sleep(0.001)
        made = endless.made
        with pytest.raises(ApiError) as e:
            await tokens(endless)
        return got == read.prompts, made, e.value.code

    try:
        same, made, code = run(main())
    finally:
        thread.stop()
    assert same
    assert made == 21
    assert code == "slow_reader"


def test_the_salt_of_a_job_goes_with_each_of_its_prompts(thread, engine):
    async def main():
        salted = Job([[1], [2]], GenerationParams(), 30.0, salt="s")
        for j in (salted, job([3])):
            thread.submit(j)
            await tokens(j)

    run(main())
    assert engine.salts == ["s", "s", ""]
