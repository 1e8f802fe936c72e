"""The section `[gateway]`: upstreams, models, keys, limits, and where events are spooled.

Secrets never stand in the file: a key is named by the environment variable or the file
that holds it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AnyHttpUrl, Field, SecretStr, model_validator

from pipeline.section import Section
from schemas.sensitive import Kind

Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\s\x00-\x1f]+$")]
Label = Annotated[str, Field(max_length=128)]
Seconds = Annotated[float, Field(gt=0, le=3_600)]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
#: Why an attempt failed, in the words of the configuration. `gateway.failures` knows them all.
FallbackOn = Literal[
    "timeout", "rate_limited", "server_error", "unreachable", "context_too_long", "misconfigured"
]
FALLBACK_ON: tuple[FallbackOn, ...] = (
    "timeout",
    "rate_limited",
    "server_error",
    "unreachable",
    "context_too_long",
    "misconfigured",
)


class UpstreamSettings(Section):
    """Something that answers: OpenAI, Azure, vLLM, Ollama, Anthropic's Messages API, …"""

    name: Name
    kind: Literal["openai", "azure", "anthropic"] = "openai"
    #: Up to and without ``/chat/completions`` or ``/messages``. Azure's: up to and without
    #: ``/openai``.
    base_url: AnyHttpUrl
    #: `gen_ai.provider.name` of its events, and what prices are looked up by; else the kind.
    provider: Label | None = None
    region: Label | None = None
    api_key_env: Variable | None = None
    api_key_file: Path | None = None
    #: Azure's, and Anthropic's ``anthropic-version``.
    api_version: Label | None = None
    #: Connections that are open at once; what comes on top waits for one.
    connections: Annotated[int, Field(ge=1, le=10_000)] = 512
    connect_timeout_s: Seconds = 5.0
    #: For a whole answer, or for the first chunk of a stream.
    timeout_s: Seconds = 60.0
    #: Between two chunks of a stream.
    chunk_timeout_s: Seconds = 60.0
    #: So many failures one after the other, and the upstream is left alone for a while.
    breaker_failures: Annotated[int, Field(ge=1, le=10_000)] = 5
    breaker_pause_s: Seconds = 15.0


class TargetSettings(Section):
    """One way in which a model is served."""

    upstream: Name
    #: What the upstream calls it: pin a version here.
    model: Name
    weight: Annotated[float, Field(gt=0, le=1_000_000)] = 1.0


class ModelSettings(Section):
    """A model by the name under which clients ask for it."""

    name: Name
    targets: Annotated[tuple[TargetSettings, ...], Field(min_length=1, max_length=64)]
    #: Models that answer in its place, in this order.
    fallbacks: Annotated[tuple[Name, ...], Field(max_length=16)] = ()
    fallback_on: frozenset[FallbackOn] = frozenset(FALLBACK_ON)
    #: Over all attempts; of a stream until its first chunk.
    deadline_s: Seconds = 120.0
    #: What fits into it, prompt and answer; None: history is never trimmed.
    context_tokens: Annotated[int, Field(ge=16)] | None = None
    #: Its ``tokenizer.json``: tokens are counted by it. Without one they are estimated.
    tokenizer: Path | None = None
    #: Whether the cache may answer for it, where there is one.
    cache: bool = True
    owned_by: Label = "kizashi"


class KeySettings(Section):
    """A client's key, and what it may do."""

    name: Name
    key_env: Variable | None = None
    key_file: Path | None = None
    #: Instead of the key itself: its SHA-256 in hexadecimal.
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    tenant: Label | None = None
    route: Label | None = None
    #: Its requests may say that they are canaries (`X-Kizashi-Canary`), and not users'.
    canary: bool = False
    #: Models that it may ask for; empty: all.
    models: frozenset[Name] = frozenset()
    requests_per_min: Annotated[int, Field(ge=1)] | None = None
    #: Of input and output together.
    tokens_per_min: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _check_source(self) -> KeySettings:
        if sum(s is not None for s in (self.key_env, self.key_file, self.sha256)) != 1:
            raise ValueError("set one of key_env, key_file, sha256")
        return self


class LimitSettings(Section):
    """Where the counts of the limits are kept. In memory each process counts for itself."""

    #: ``redis://…`` or ``rediss://…``: several gateways count together.
    redis_url: SecretStr | None = None
    #: Whether requests pass while Redis is away. Either way it is counted.
    open_when_away: bool = True


class EventSettings(Section):
    """Every request becomes one event: through the spool to Kafka."""

    enabled: bool = True
    #: Of one process; a second gateway on the machine needs a directory of its own.
    spool: Path = Path("kizashi-spool")
    #: What comes when so much waits for Kafka is lost, and counted.
    spool_bytes: Annotated[int, Field(ge=1_048_576)] = 1024 * 1024 * 1024
    segment_bytes: Annotated[int, Field(ge=65_536, le=1024 * 1024 * 1024)] = 16 * 1024 * 1024
    #: The longest time for which a power failure can undo what was spooled.
    sync_interval_s: Annotated[float, Field(gt=0, le=60)] = 0.2
    #: Whether prompts and answers go along. Without them nobody can find a silent swap.
    texts: bool = True
    #: Of each text, its first characters.
    text_characters: Annotated[int, Field(ge=0, le=100_000)] = 20_000


class FeedbackSettings(Section):
    """`POST /v1/feedback`: through a spool of its own beside the events', to Kafka."""

    #: Not without events: what feedback is about would not be known.
    enabled: bool = True
    #: Of one request, packed and unpacked.
    body_bytes: Annotated[int, Field(ge=1_024, le=8 * 1024 * 1024)] = 1024 * 1024
    #: What comes when so much waits for Kafka is told to come back.
    spool_bytes: Annotated[int, Field(ge=32 * 1024 * 1024)] = 64 * 1024 * 1024


GuardMode = Literal["observe", "redact", "block"]
#: These end where a label's sentence does, or need what follows: no stream can wait for it.
NOT_IN_ANSWERS = frozenset({Kind.PASSWORD, Kind.NAME, Kind.JP_POSTAL_CODE})


class GuardrailSettings(Section):
    """What may go in and come out. Empty: nothing is looked at."""

    #: Of all that users and tools say in a request.
    input_characters: Annotated[int, Field(ge=1)] | None = None
    length: Literal["observe", "block"] = "block"
    #: Attempts to take over the model, in what users and tools say; `redact` takes them out.
    injection: GuardMode | None = None
    #: Kinds of personal data and secrets, and what is done about each.
    input: dict[Kind, GuardMode] = Field(default_factory=dict)
    output: dict[Kind, GuardMode] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_output(self) -> GuardrailSettings:
        if cannot := NOT_IN_ANSWERS.intersection(self.output):
            raise ValueError(f"output: {min(cannot)} is not looked for in answers")
        return self


class CacheSettings(Section):
    """Answers from what was answered before. What a hit is, and its risk: docs/gateway.md."""

    enabled: bool = False
    #: The least cosine of two questions of which one answers the other.
    similarity: Annotated[float, Field(ge=0.5, le=1)] = 0.95
    #: What must be the same besides: the words but for politeness, or only numbers, names and such.
    same: Literal["words", "facts"] = "words"
    ttl_s: Annotated[float, Field(gt=0, le=30 * 86_400)] = 3_600.0
    entries: Annotated[int, Field(ge=1, le=10_000_000)] = 100_000
    bytes: Annotated[int, Field(ge=65_536)] = 512 * 1024 * 1024
    #: Messages of more characters are compared to the letter.
    text_characters: Annotated[int, Field(ge=0, le=10_000)] = 1_000
    #: Who asks for more wants variety.
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0


class GatewaySettings(Section):
    """The OpenAI-compatible gateway, `kizashi gateway`."""

    host: str = "127.0.0.1"
    #: 0 lets the system choose.
    port: Annotated[int, Field(ge=0, le=65_535)] = 8480
    upstreams: Annotated[tuple[UpstreamSettings, ...], Field(max_length=256)] = ()
    models: Annotated[tuple[ModelSettings, ...], Field(max_length=1_000)] = ()
    #: Without any, whoever reaches the gateway may use it: on loopback alone.
    keys: Annotated[tuple[KeySettings, ...], Field(max_length=10_000)] = ()
    #: What Prometheus bears to read `/metrics`; without one anybody may.
    metrics_key_env: Variable | None = None
    metrics_key_file: Path | None = None
    limits: LimitSettings = LimitSettings()
    guardrails: GuardrailSettings = GuardrailSettings()
    cache: CacheSettings = CacheSettings()
    events: EventSettings = EventSettings()
    feedback: FeedbackSettings = FeedbackSettings()
    body_bytes: Annotated[int, Field(ge=1_024)] = 16 * 1024 * 1024
    #: Requests that are served at once; what comes on top is told to come back.
    requests: Annotated[int, Field(ge=1, le=1_000_000)] = 4_096
    #: How often one request may be sent to upstreams.
    attempts: Annotated[int, Field(ge=1, le=32)] = 4
    #: Before an upstream is asked again; doubled each time.
    backoff_s: Annotated[float, Field(gt=0, le=60)] = 0.2
    backoff_s_max: Annotated[float, Field(gt=0, le=600)] = 5.0
    #: Of messages, where Accept-Language asks for none that we have.
    language: Literal["en", "ja"] = "en"

    @model_validator(mode="after")
    def _check_names(self) -> GatewaySettings:
        for what in ("upstreams", "models", "keys"):
            names = [each.name for each in getattr(self, what)]
            if len(set(names)) != len(names):
                raise ValueError(f"{what}: a name stands there twice")
        upstreams = {u.name for u in self.upstreams}
        models = {m.name for m in self.models}
        for model in self.models:
            if unknown := {t.upstream for t in model.targets} - upstreams:
                raise ValueError(f"models.{model.name}: no upstream {sorted(unknown)[0]}")
            if unknown := set(model.fallbacks) - models:
                raise ValueError(f"models.{model.name}: no model {sorted(unknown)[0]}")
            if model.name in model.fallbacks:
                raise ValueError(f"models.{model.name}: it cannot stand in for itself")
            if not math.isfinite(sum(t.weight for t in model.targets)):
                raise ValueError(f"models.{model.name}: weights must be finite")
        return self
