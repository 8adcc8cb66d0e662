"""What the engine knows of a request while it lives."""

from __future__ import annotations

from dataclasses import dataclass, field

from xtdist.config import derive_seed
from xtdist.decode.beam import BeamSearch
from xtdist.decode.kv_cache import PageTable
from xtdist.decode.params import GenerationParams
from xtdist.decode.sampling import Row
from xtdist.decode.step_cache import Context
from xtdist.decode.stopping import TextStream


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

    It starts as one sequence; after the prompt it becomes ``n`` of them or the beams.
    """

    id: str
    prompt: tuple[int, ...]
    params: GenerationParams
    seed: int
    ends: tuple[int, ...]
    sequences: list[Sequence] = field(default_factory=list)
    beams: BeamSearch | None = None
    branched: bool = False
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
    def atomic(self) -> bool:
        """Beams are compared with each other, so they take the step to a new token together."""
        return self.beams is not None and len(self.sequences) > 1

    @property
    def whole(self) -> bool:
        """Whether all its tokens must run in one step."""
        return False

    @property
    def contrastive(self) -> bool:
        return self.params.contrastive is not None

    def row(self, sequence: Sequence) -> Row:
        """What the sampler must know of ``sequence``."""
        return Row(
            params=self.params,
            seed=derive_seed(self.seed, sequence.index),
            tokens=sequence.tokens,
            prompt_tokens=len(self.prompt),
            ends=self.ends,
        )

    def generated(self, sequence: Sequence) -> tuple[int, ...]:
        return tuple(sequence.tokens[len(self.prompt) :])
