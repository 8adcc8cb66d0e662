"""What the engine knows of a request while it lives."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from xtdist.config import derive_seed
from xtdist.decode.beam import BeamSearch
from xtdist.decode.contrastive_search import Search
from xtdist.decode.kv_cache import PageTable
from xtdist.decode.outputs import Output
from xtdist.decode.params import GenerationParams
from xtdist.decode.processors import LogitsProcessor
from xtdist.decode.prompt_scores import PromptScores
from xtdist.decode.sampling import Row
from xtdist.decode.step_cache import Context
from xtdist.decode.stochastic_beam import StochasticBeams
from xtdist.decode.stopping import Release, TextStream


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What a caller gives with a prompt and parameters; see ``Engine.add``."""

    context: Any = None
    processor: LogitsProcessor | None = None
    salt: str = ""


@dataclass(eq=False)
class Sequence:
    """One continuation in progress: all its tokens, and how many of them are in the cache."""

    tokens: list[int]
    index: int = 0
    table: PageTable = field(default_factory=PageTable)
    stream: TextStream = field(default_factory=TextStream)

    @property
    def missing(self) -> int:
        """Known tokens that are not yet computed."""
        return len(self.tokens) - self.table.length


@dataclass(eq=False)
class Request:
    """A prompt with its parameters and the sequences that continue it; all read ``context``.

    It starts as one sequence; after the prompt it becomes ``n`` of them, the beams, or the
    candidates of contrastive search. ``exits``: the layers that DoLa leaves after. ``held``: what
    is only given out once all sequences have ended and the best of them are known. ``resumed``:
    what the tokens show that it begins with. ``scores``: of its prompt, until they are given out.
    ``root`` begins the names of its blocks in the prefix cache; empty: it has no part in that.
    """

    id: str
    prompt: tuple[int, ...]
    params: GenerationParams
    seed: int
    ends: tuple[int, ...]
    sequences: list[Sequence] = field(default_factory=list)
    beams: BeamSearch | StochasticBeams | None = None
    search: Search | None = None
    exits: tuple[int, ...] = ()
    processors: tuple[LogitsProcessor, ...] = ()
    held: list[Output] = field(default_factory=list)
    branched: bool = False
    admitted: bool = False
    resumed: Release = field(default_factory=Release)
    scores: PromptScores | None = None
    root: bytes = b""
    _seeds: dict[int, int] = field(default_factory=dict)
    context: Context | None = None

    @property
    def width(self) -> int:
        """Sequences it may need at once from now on."""
        if self.branched and self.beams is None:
            return len(self.sequences)
        return self.params.width

    @property
    def backlog(self) -> int:
        """Tokens it wants to compute."""
        return sum(s.missing for s in self.sequences)

    @property
    def reads_states(self) -> bool:
        """Whether the hidden states of all its tokens are wanted, not only logits of the last."""
        return self.search is not None or self.scores is not None

    @property
    def atomic(self) -> bool:
        """Beams and candidates are compared with each other, so they take the step to a new token
        together."""
        compared = self.beams is not None or self.search is not None
        return compared and len(self.sequences) > 1

    def drafts_for(self, sequence: Sequence) -> int:
        """Tokens to draft after the known ones: none before the prompt's end is shared out, none
        beyond the last that it may generate."""
        if not self.params.draft_tokens or not (self.branched or self.params.width == 1):
            return 0
        left = self.params.max_tokens - (len(sequence.tokens) - len(self.prompt))
        return min(self.params.draft_tokens, left - 1)

    def rewind(self) -> None:
        """The pages are gone: candidates are found again, once what is certain is computed."""
        if self.search is None:
            return
        if self.search.candidates:
            del self.sequences[1:]
            self.sequences[0].tokens.pop()
        self.search.forget()

    @property
    def whole(self) -> bool:
        """Whether all its tokens must run in one step."""
        return False

    def row(self, sequence: Sequence, ahead: Iterable[int] = ()) -> Row:
        """What the sampler must know of ``sequence``, after the drafts ``ahead``."""
        return Row(
            params=self.params,
            seed=self._seed_of(sequence.index),
            tokens=[*sequence.tokens, *ahead] if ahead else sequence.tokens,
            prompt_tokens=len(self.prompt),
            ends=self.ends,
            processors=self.processors,
            request_id=self.id,
        )

    def _seed_of(self, index: int) -> int:
        """The root of the draws of one choice, derived once."""
        if index not in self._seeds:
            self._seeds[index] = derive_seed(self.seed, index)
        return self._seeds[index]

    def generated(self, sequence: Sequence) -> tuple[int, ...]:
        return tuple(sequence.tokens[len(self.prompt) :])
