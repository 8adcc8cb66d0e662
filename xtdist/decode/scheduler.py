"""Who computes what in the next step. One rule: a sequence wants ``known - computed`` tokens, and a
step has a budget. Prompts, chunks of prompts, decoding and the return of a preempted request are
all that rule.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from xtdist.decode.kv_cache import KVPool, PageTable
from xtdist.decode.params import EngineConfig
from xtdist.decode.request import Request, Sequence


@dataclass(frozen=True)
class Work:
    """``count`` more tokens of ``sequence``, a part of ``request``; ``drafted``: tokens to draft
    after them, or, once they are drafted and stand in ``sequence``, how many of ``count`` are."""

    request: Request
    sequence: Sequence
    count: int
    drafted: int = 0

    @property
    def completes(self) -> bool:
        """Whether its last known token is among them, so that the next one can be chosen."""
        return self.count == self.sequence.missing


@dataclass
class Scheduler:
    """Requests in order of arrival: waiting ones, and running ones that hold pages.

    When pages run out, the newest request that is not in this step gives up its pages and computes
    them again later. It counts tokens of prompts that it admitted, those of them that pages held
    already, and how often a request gave up its pages.
    """

    pool: KVPool
    config: EngineConfig
    waiting: deque[Request] = field(default_factory=deque)
    running: list[Request] = field(default_factory=list)
    prompt_tokens: int = 0
    hit_tokens: int = 0
    preemptions: int = 0

    @property
    def chunk_tokens(self) -> int:
        """The most that one sequence may compute in one step."""
        window = self.pool.window
        return self.config.max_step_tokens if window is None else window.chunk

    def plan(self) -> list[Work]:
        """The work of the next step; pages for it are reserved."""
        self._admit()
        budget = self.config.max_step_tokens
        planned: dict[int, list[Work]] = {}
        decoding_first = sorted(self.running, key=lambda r: r.backlog > len(r.sequences))
        for request in decoding_first:
            if request not in self.running:  # preempted by one before it
                continue
            work = self._grant(request, budget)
            if work and self._make_room(request, work, planned):
                planned[id(request)] = work
                budget -= sum(w.count for w in work)
        return self._with_drafts([w for work in planned.values() for w in work], budget)

    def _with_drafts(self, work: list[Work], budget: int) -> list[Work]:
        """What nobody else wants of the budget and the pages goes to drafts."""
        planned = []
        for w in work:
            room = min(budget, self.chunk_tokens - w.count)
            drafted = min(w.request.drafts_for(w.sequence), room) if w.completes else 0
            if drafted > 0 and self.pool.reserve([(w.sequence.table, w.count + drafted)]):
                w = replace(w, drafted=drafted)
                budget -= drafted
            planned.append(w)
        return planned

    def remove(self, request: Request) -> None:
        """Forget a request and free its pages."""
        for sequence in request.sequences:
            self.pool.release(sequence.table)
        if request in self.running:
            self.running.remove(request)
        else:
            self.waiting.remove(request)

    def restart(self, requests: Iterable[Request]) -> None:
        """A plan was broken off: all ``requests``, in the order in which they came, wait for pages
        and compute what they know again."""
        self.waiting, self.running = deque(requests), []
        for request in self.waiting:
            for sequence in request.sequences:
                sequence.table = PageTable()
            request.rewind()
        self.pool.clear()

    def _admit(self) -> None:
        width = sum(r.width for r in self.running)
        free = self.pool.free
        while self.waiting:
            request = self.waiting[0]
            width += request.width
            free -= sum(self.pool.most_pages(len(s.tokens)) for s in request.sequences)
            if width > self.config.max_sequences or free < 0:
                return
            self.running.append(self.waiting.popleft())
            self._begin(request)

    def _begin(self, request: Request) -> None:
        """Give a request what pages hold of its beginning."""
        hits = 0
        if not request.reads_states:
            for s in request.sequences:
                hits += self.pool.reuse(s.table, s.tokens, root=request.root)
        if not request.admitted:
            request.admitted = True
            self.prompt_tokens += len(request.prompt)
            self.hit_tokens += min(hits, len(request.prompt))

    def _grant(self, request: Request, budget: int) -> list[Work]:
        """As much of what ``request`` wants as the budget allows."""
        if request.whole and request.backlog > budget:
            return []
        chunk = self.chunk_tokens
        hold_last = request.atomic and (
            request.backlog > budget or any(s.missing > chunk for s in request.sequences)
        )
        work = []
        for sequence in request.sequences:
            count = min(sequence.missing - hold_last, budget, chunk)
            if count > 0:
                work.append(Work(request, sequence, count))
                budget -= count
        return work

    def _make_room(
        self, request: Request, work: list[Work], planned: dict[int, list[Work]]
    ) -> bool:
        wanted = [(w.sequence.table, w.count) for w in work]
        while not self.pool.reserve(wanted):
            newer = self.running[self.running.index(request) + 1 :]
            victims = [r for r in newer if id(r) not in planned]
            if not victims:
                return False
            self._preempt(victims[-1])
        return True

    def _preempt(self, request: Request) -> None:
        self.preemptions += 1
        for sequence in request.sequences:
            self.pool.release(sequence.table)
        request.rewind()
        self.running.remove(request)
        self.waiting.appendleft(request)
