"""What is served, to whom, and how much of it one request may ask for."""

from __future__ import annotations

from typing import Literal

from xtdist.config import (
    ConfigError,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    configclass,
)
from xtdist.decode.params import EngineConfig


@configclass
class ServedModel:
    """One model and, for contrastive decoding, the weaker model it is contrasted with.

    Args:
        name: what clients put into ``model``.
        weights: a weights folder, a checkpoint, or a run (its newest checkpoint).
        amateur: the same for the amateur; it must have the same tokenizer.
    """

    name: str
    weights: str
    amateur: str | None = None


@configclass
class LimitsConfig:
    """Bounds of one request; beyond them it is refused before any work is done for it.

    Args:
        max_body_bytes: counted while reading; more gives 413.
        max_json_depth: nesting of the body.
        max_prompts: prompts in one request.
        max_tokens: generated tokens of one choice.
        max_sequences: prompts x max(n, best_of, num_beams), all of one request.
        max_stops, max_stop_chars: stop strings, and the length of each.
        max_logit_bias: entries of logit_bias.
        max_logprobs: top log-probabilities per token.
        body_timeout_s: for the whole body to arrive.
        request_timeout_s: from admission to the last token, whatever the client's headers say.
        health_timeout_s: for the one-token generation behind ``/health``.
    """

    max_body_bytes: PositiveInt = 262_144
    max_json_depth: PositiveInt = 8
    max_prompts: PositiveInt = 16
    max_tokens: PositiveInt = 1024
    max_sequences: PositiveInt = 32
    max_stops: PositiveInt = 16
    max_stop_chars: PositiveInt = 256
    max_logit_bias: PositiveInt = 1024
    max_logprobs: PositiveInt = 20
    body_timeout_s: PositiveFloat = 10.0
    request_timeout_s: PositiveFloat = 120.0
    health_timeout_s: PositiveFloat = 10.0


@configclass
class AppConfig:
    """The application: the ``args`` of a Ray Serve YAML.

    Args:
        models: at least one; all of them run in every replica.
        engine: sizes of the decode engine, per model.
        api_keys_file: names and digests (:mod:`xtdist.serve.auth`); None serves without keys.
        replicas: copies of the application.
        cpus: of one replica; also its torch threads.
        gpus: of one replica; above 0 the models run on the first one.
        dtype: of the weights in memory; ``saved`` keeps what the folder has, ``int8`` keeps a byte
            for each weight of a matrix (on CPU only).
    """

    models: tuple[ServedModel, ...]
    engine: EngineConfig = EngineConfig()
    limits: LimitsConfig = LimitsConfig()
    api_keys_file: str | None = None
    replicas: PositiveInt = 1
    cpus: PositiveInt = 1
    gpus: NonNegativeFloat = 0.0
    dtype: Literal["saved", "float32", "bfloat16", "int8"] = "float32"

    def __post_init__(self) -> None:
        names = [m.name for m in self.models]
        if not names:
            raise ConfigError("models: empty; name at least one model and its weights")
        if len(set(names)) != len(names):
            raise ConfigError(f"models: names should differ, got {', '.join(names)}")
        if self.dtype == "int8" and self.gpus:
            raise ConfigError(
                f"dtype: got int8 with gpus {self.gpus}; int8 weights are for the CPU: set gpus to "
                "0, or dtype to bfloat16"
            )
        if self.limits.max_prompts > self.engine.max_waiting:
            raise ConfigError(
                f"limits.max_prompts: got {self.limits.max_prompts}, but engine.max_waiting "
                f"{self.engine.max_waiting} requests can wait; lower it or raise max_waiting"
            )

    @property
    def capacity(self) -> int:
        """Engine requests that one replica holds, running and waiting, over all models."""
        return len(self.models) * (self.engine.max_sequences + self.engine.max_waiting)


@configclass
class ServeConfig(AppConfig):
    """``xtdist serve``: the application and where it listens.

    Args:
        host: 127.0.0.1 keeps it on this machine. For other machines give an address and keys.
        port: TCP port.
    """

    host: str = "127.0.0.1"
    port: PositiveInt = 8000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.port > 65535:
            raise ConfigError(f"port: {self.port}; a TCP port is at most 65535")
