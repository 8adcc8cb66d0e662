"""Our models under EleutherAI's lm-evaluation-harness (the extra ``evaluate``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from xtdist.checkpoint import LoadedModel
from xtdist.config import ConfigError, digest
from xtdist.decode.engine import Engine
from xtdist.decode.outputs import Completion
from xtdist.decode.params import EngineConfig, GenerationParams
from xtdist.nn.position.config import LearnedConfig

MAX_GEN_TOKENS = 256
_SAMPLING = ("temperature", "top_p", "top_k", "min_p")
_KNOWN = {"until", "do_sample", "max_gen_toks", "max_new_tokens", *_SAMPLING}


class HarnessLM(TemplateLM):
    """What the harness asks, answered by our engine, many requests in each forward pass.

    ``max_length``: the tokens of a window, as for the harness's own models: what is predicted last
    need not be read. (With learned positions one less than the model's longest sequence, because
    the engine places that last token too.)
    """

    def __init__(self, loaded: LoadedModel, *, seed: int = 0) -> None:
        """Raises ConfigError for a model that does not predict the next token."""
        super().__init__()
        if loaded.objective.kind != "autoregressive":
            raise ConfigError(
                f"--tasks: the model's objective is {loaded.objective.kind}; tasks score the next "
                "token, which takes an autoregressive model"
            )
        tokenizer, net = loaded.tokenizer, loaded.model
        self.tokenizer = tokenizer
        table = isinstance(net.config.position, LearnedConfig)
        longest = net.max_seq_len + (not table)
        self.max_length = longest - 1
        self.engine = Engine(
            net,
            tokenizer=tokenizer,
            eos_ids=(tokenizer.eot_id,),
            banned_ids=(tokenizer.mask_id, tokenizer.pad_id),
            config=EngineConfig(max_sequence_tokens=longest, seed=seed),
        )

    @property
    def eot_token_id(self) -> int:
        """It ends a document, and stands before a text without a context."""
        return int(self.tokenizer.eot_id)

    @property
    def tokenizer_name(self) -> str:
        """What cached requests are known by."""
        return str(self.tokenizer.sha256)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **keywords: Any
    ) -> list[int]:
        """Ids of a text; special tokens are never added."""
        return [int(i) for i in self.tokenizer.encode(string)]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **keywords: Any
    ) -> list[tuple[float, bool]]:
        """Of each continuation: its log-probability, and whether greedy decoding gives it. What is
        too long loses the beginning of its context."""
        most = self.max_length + 1
        prompts, counts = [], []
        for _, context, continuation in requests:
            if len(continuation) > self.max_length:
                raise ConfigError(
                    f"--tasks: a continuation of {len(continuation)} tokens; this model scores at "
                    f"most {self.max_length} at once"
                )
            prompts.append((context + continuation)[-most:])
            counts.append(len(continuation))
        params = GenerationParams(max_tokens=0, prompt_logprobs=1)
        scored = self.engine.generate(prompts, params)
        return [_score(completion, n) for completion, n in zip(scored, counts, strict=True)]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each text, in windows of the model's length."""
        owners: list[int] = []
        windows: list[tuple[Any, list[int], list[int]]] = []
        for number, request in enumerate(requests):
            for context, continuation in self._windows(request.args[0]):
                owners.append(number)
                windows.append((None, context, continuation))
        totals = [0.0] * len(requests)
        for owner, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += logprob
        return totals

    def _windows(self, text: str) -> Iterator[tuple[list[int], list[int]]]:
        yield from map(
            make_disjoint_window,
            get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ),
        )

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """What follows each context, up to one of its stop strings."""
        texts: list[str] = [""] * len(requests)
        groups: dict[str, tuple[GenerationParams, list[int]]] = {}
        for number, request in enumerate(requests):
            params = self._params(request.args[1])
            groups.setdefault(digest(params), (params, []))[1].append(number)
        for params, numbers in groups.values():
            room = self.max_length - params.max_tokens
            if room < 1:
                raise ConfigError(
                    f"--tasks: max_gen_toks is {params.max_tokens}; this model has room for "
                    f"{self.max_length} tokens with the context"
                )
            prompts = [self.tok_encode(requests[n].args[0])[-room:] for n in numbers]
            prompts = [prompt or [self.prefix_token_id] for prompt in prompts]
            for n, done in zip(numbers, self.engine.generate(prompts, params), strict=True):
                texts[n] = done.choices[0].text
        return texts

    def _params(self, given: Mapping[str, Any]) -> GenerationParams:
        """Raises ConfigError for what is not known here, which would be another generation."""
        unknown = sorted(set(given) - _KNOWN)
        if unknown:
            known = ", ".join(sorted(_KNOWN))
            raise ConfigError(f"generation_kwargs.{unknown[0]}: not known; give some of {known}")
        until = given.get("until") or ()
        stop = (until,) if isinstance(until, str) else tuple(dict.fromkeys(until))
        most = given.get("max_gen_toks", given.get("max_new_tokens"))
        most = min(MAX_GEN_TOKENS, self.max_length // 2) if most is None else most
        if type(most) is not int or most < 1:
            raise ConfigError(f"generation_kwargs.max_gen_toks: got {most!r}; give 1 or more")
        warm = given.get("temperature", 1.0)
        if not given.get("do_sample", "temperature" in given and warm > 0) or not warm:
            return GenerationParams(max_tokens=most, temperature=0.0, stop=stop)
        sampling = {name: given[name] for name in _SAMPLING if name in given}
        return GenerationParams(max_tokens=most, stop=stop, **sampling)


def _score(completion: Completion, count: int) -> tuple[float, bool]:
    """Of the last ``count`` tokens of a prompt."""
    found = completion.prompt_logprobs or ()
    known = [token for token in found[len(found) - count :] if token is not None]
    greedy = all(token.top[0][0] == token.token_id for token in known)
    return sum(token.logprob for token in known), greedy
