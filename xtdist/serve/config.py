"""What is served, to whom, and how much of it one request may ask for."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

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
        weights: a weights folder, a checkpoint, or a run (its newest checkpoint), as a path or an
            ``s3://`` URL; or ``models:/name@alias`` and ``models:/name/version`` of the registry.
        amateur: the same for the amateur; it must have the same tokenizer.
        chat_template: a jinja2 file for ``/v1/chat/completions``, instead of the one that may lie
            with the weights (:mod:`xtdist.checkpoint.chat_template`).
        follow: look again every ``reload_every_s`` what these mean, and serve newer weights when
            there are some. Otherwise they are looked up once, at the start.
    """

    name: str
    weights: str
    amateur: str | None = None
    chat_template: str | None = None
    follow: bool = False


@configclass
class QuotaConfig:
    """What one API key may use, counted by each replica for itself; None is no bound. A key can
    have bounds of its own in the key file (:mod:`xtdist.serve.auth`).

    Args:
        requests_per_min: of all kinds, refused ones too.
        concurrent_requests: at once; a stream runs until its end.
        tokens_per_min: prompts and answers; ``max_tokens`` are reserved, what was not used comes
            back.
    """

    requests_per_min: PositiveInt | None = None
    concurrent_requests: PositiveInt | None = None
    tokens_per_min: PositiveInt | None = None


@configclass
class LimitsConfig:
    """Bounds of one request; beyond them it is refused before any work is done for it.

    Args:
        max_header_bytes: headers, path and query; more gives 431.
        max_body_bytes: counted while reading; more gives 413.
        max_json_depth: nesting of the body.
        max_prompts, max_prompt_chars: prompts in one request, and characters of all of them.
        max_tokens: generated tokens of one choice.
        max_sequences: prompts x max(n, best_of, num_beams), all of one request.
        max_stops, max_stop_chars: stop strings, and the length of each.
        max_logit_bias, max_bad_words: entries of each.
        max_grammar_chars: of structured_outputs.
        max_logprobs: top log-probabilities per token.
        body_timeout_s: for the whole body to arrive.
        request_timeout_s: from admission to the last token, whatever the client's headers say.
        health_timeout_s: for the one-token generation behind ``/health``.
        stall_timeout_s: for one step of an engine; a replica where one takes longer is replaced.
        send_timeout_s: for the client to take one piece of a stream.
        max_unread_tokens: that the client has not taken; beyond it the request is ended.
        grammar_timeout_s: to compile structured_outputs.
        max_open_requests: of all callers, from the door to the end of the answer, per replica.
        max_wait_s: for a turn, by the pace of the last turns; where it would take longer a request
            is refused (503 with Retry-After), as where ``engine.max_waiting`` wait. None: only
            their number counts.
    """

    max_header_bytes: PositiveInt = 32_768
    max_body_bytes: PositiveInt = 262_144
    max_json_depth: PositiveInt = 24
    max_prompts: PositiveInt = 16
    max_prompt_chars: PositiveInt = 131_072
    max_tokens: PositiveInt = 1024
    max_sequences: PositiveInt = 32
    max_stops: PositiveInt = 16
    max_stop_chars: PositiveInt = 256
    max_logit_bias: PositiveInt = 1024
    max_bad_words: PositiveInt = 64
    max_grammar_chars: PositiveInt = 16_384
    max_logprobs: PositiveInt = 20
    body_timeout_s: PositiveFloat = 10.0
    request_timeout_s: PositiveFloat = 120.0
    health_timeout_s: PositiveFloat = 10.0
    stall_timeout_s: PositiveFloat = 120.0
    send_timeout_s: PositiveFloat = 30.0
    max_unread_tokens: PositiveInt = 4096
    grammar_timeout_s: PositiveFloat = 5.0
    max_open_requests: PositiveInt = 1024
    max_wait_s: PositiveFloat | None = None


@configclass
class LiveConfig:
    """What may change while replicas run: the ``user_config`` of the deployment in a Ray Serve
    YAML. ``serve deploy`` of a file in which only this differs restarts nothing.

    Args:
        models: instead of those of the same name in ``args``.
    """

    models: tuple[ServedModel, ...] = ()

    def of(self, models: tuple[ServedModel, ...]) -> tuple[ServedModel, ...]:
        """``models`` with what is here instead.

        Raises:
            ConfigError: a name that is not among them.
        """
        instead = {m.name: m for m in self.models}
        names = [m.name for m in models]
        for name in instead.keys() - set(names):
            raise ConfigError(
                f"user_config: models: {name!r} is not served; replace one of {', '.join(names)}, "
                "or add it to args"
            )
        return tuple(instead.get(m.name, m) for m in models)


@configclass
class AutoscalingConfig:
    """As many replicas as the load needs.

    Args:
        min_replicas, max_replicas: never fewer, never more.
        load: of the sequences that a replica's engines run at once; above it replicas are added.
        look_back_s: over which the load is averaged; Ray Serve measures it every 10 s.
        upscale_delay_s, downscale_delay_s: how long it must last. A replica that ends finishes its
            streams.
    """

    min_replicas: PositiveInt = 1
    max_replicas: PositiveInt
    load: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.7
    look_back_s: Annotated[float, Field(gt=10, allow_inf_nan=False)] = 30.0
    upscale_delay_s: NonNegativeFloat = 30.0
    downscale_delay_s: NonNegativeFloat = 300.0

    def __post_init__(self) -> None:
        if self.max_replicas < self.min_replicas:
            raise ConfigError(
                f"max_replicas: got {self.max_replicas}, fewer than min_replicas "
                f"{self.min_replicas}; raise it"
            )


@configclass
class AppConfig:
    """The application: the ``args`` of a Ray Serve YAML.

    Args:
        models: at least one; all of them run in every replica.
        engine: sizes of the decode engine, per model.
        api_keys_file: names and digests (:mod:`xtdist.serve.auth`), read again when it changes.
        api_keys_env: name of an environment variable with the same, set wherever a replica starts.
            Neither of the two: everybody may use the server.
        open_metrics: whether ``/metrics`` needs no key.
        quota: of each key.
        replicas: copies of the application.
        autoscaling: how many copies instead of ``replicas``.
        cpus: of one replica; also its torch threads.
        gpus: of one replica; above 0 the models run on the first one.
        dtype: of the weights in memory; ``saved`` keeps what the folder has, ``int8`` keeps a byte
            for each weight of a matrix (on CPU only).
        reload_every_s: how often models with ``follow`` are looked up.
        registry: MLflow's address for ``models:/``; None: MLFLOW_TRACKING_URI.
        drain_s: what streams have to finish when the server is stopped; those that go on are ended
            with an error.
    """

    models: tuple[ServedModel, ...]
    engine: EngineConfig = EngineConfig()
    limits: LimitsConfig = LimitsConfig()
    api_keys_file: str | None = None
    api_keys_env: str | None = None
    open_metrics: bool = False
    quota: QuotaConfig = QuotaConfig()
    replicas: PositiveInt = 1
    cpus: PositiveInt = 1
    gpus: NonNegativeFloat = 0.0
    dtype: Literal["saved", "float32", "bfloat16", "int8"] = "float32"
    autoscaling: AutoscalingConfig | None = None
    reload_every_s: PositiveFloat = 30.0
    registry: str | None = None
    drain_s: NonNegativeFloat = 30.0

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

        if self.autoscaling is not None and self.replicas != 1:
            raise ConfigError(
                f"replicas: got {self.replicas} beside autoscaling, which says how many there are; "
                "give one of the two"
            )

    @property
    def has_keys(self) -> bool:
        return self.api_keys_file is not None or self.api_keys_env is not None

    @property
    def capacity(self) -> int:
        """Engine requests that one replica holds, running and waiting, over all models."""
        return len(self.models) * (self.engine.max_sequences + self.engine.max_waiting)

    @property
    def least_replicas(self) -> int:
        """Replicas that run from the start."""
        return self.replicas if self.autoscaling is None else self.autoscaling.min_replicas


@configclass
class ServeConfig(AppConfig):
    """``xtdist serve``: the application and where it listens.

    Args:
        host: 127.0.0.1 keeps it on this machine. For other machines give an address and keys.
        port: TCP port.
        app: the application's name, of those on one cluster.
        route_prefix: path that it is under; ``/`` for one application alone.
        proxy: what listens: Ray Serve's own proxy, or HAProxy. With HAProxy the replicas
            listen as well, on all interfaces from port 30000 on, so that it needs keys.
        ssl_certfile, ssl_keyfile: PEM files of a certificate (with its chain) and its key; then it
            is https. HAProxy is started by Ray without it.
        start_timeout_s: for the replicas to come up.
    """

    host: str = "127.0.0.1"
    port: PositiveInt = 8000
    app: str = "xtdist"
    route_prefix: str = "/"
    proxy: Literal["ray", "haproxy"] = "ray"
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    start_timeout_s: PositiveFloat = 600.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            raise ConfigError("ssl_certfile, ssl_keyfile: give both or none")
        if self.ssl_certfile is not None and self.proxy == "haproxy":
            raise ConfigError(
                "ssl_certfile: proxy haproxy can't have it: Ray starts HAProxy without TLS; set "
                "proxy to ray, or put a proxy with TLS in front"
            )
        if re.fullmatch(r"(/[\w.~-]+)+|/", self.route_prefix) is None:
            raise ConfigError(
                f"route_prefix: got {self.route_prefix!r}; write it as / or /name, without a slash "
                "at the end"
            )
        if self.port > 65535:
            raise ConfigError(f"port: {self.port}; a TCP port is at most 65535")

    @property
    def url(self) -> str:
        """Where clients find it, without ``/v1``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        scheme = "http" if self.ssl_certfile is None else "https"
        return f"{scheme}://{host}:{self.port}{self.route_prefix.rstrip('/')}"
