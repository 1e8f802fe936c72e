"""Configuration → a gateway: the one place where its parts are put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from gateway.anthropic_api import AnthropicDialect
from gateway.cache import SemanticCache
from gateway.context import TrimmedHistory, load_counts
from gateway.feedback_door import FeedbackDoor, FeedbackSink
from gateway.guardrails import InputRules, OutputRules
from gateway.keys import read_keys, read_secret
from gateway.limiting import KeyLimits
from gateway.metrics import CacheCollector, Metrics
from gateway.openai_api import OpenAIDialect
from gateway.recording import EventSink, Recording
from gateway.serving import Clocks, Gateway
from gateway.stages import Stages
from gateway.upstream import Dialect, Upstream
from gateway.vectors import Vector
from pipeline.config import Config
from pipeline.gateway_settings import GatewaySettings, UpstreamSettings
from pipeline.prices import configured_table
from pipeline.receiving import build_limits


def build_stages(config: Config) -> Stages:
    """Return the stages that the configuration asks for.

    Raises:
        ConfigError: a tokenizer cannot be read.
    """
    models = config.gateway.models
    trims = any(model.context_tokens is not None for model in models)
    guards = config.gateway.guardrails
    guards_input = guards.input or guards.injection or guards.input_characters is not None
    return Stages(
        input_guards=(InputRules(guards),) if guards_input else (),
        output_guard=OutputRules(guards.output) if guards.output else None,
        cache=build_cache(config.gateway) if config.gateway.cache.enabled else None,
        context=TrimmedHistory(load_counts(models)) if trims else None,
    )


def build_cache(settings: GatewaySettings) -> SemanticCache:
    """Return the cache, with the built-in encoder."""
    # Arrow and SciPy come with it: 50 MB, for the cache alone.
    from pipeline.encoders.static import StaticEncoder

    encoder = StaticEncoder.load()

    def encode(text: str) -> Vector:
        # JSON may hold lone surrogates; the encoder takes none.
        clean = text.encode("utf-8", "replace").decode("utf-8")
        return encoder.encode_one(clean)

    cached = frozenset(model.name for model in settings.models if model.cache)
    return SemanticCache(settings.cache, cached, encode)


@asynccontextmanager
async def open_gateway(
    config: Config,
    *,
    sink: EventSink | None,
    feedback: FeedbackSink | None = None,
    stages: Stages | None = None,
    clocks: Clocks | None = None,
) -> AsyncIterator[Gateway]:
    """Give a gateway with its connections; they are closed at the end.

    Without `feedback` it has no door for any.

    Raises:
        ConfigError: a key is missing.
    """
    settings = config.gateway
    metrics = Metrics(
        frozenset(m.name for m in settings.models), configured_table(config.prices.file)
    )
    clocks = clocks or Clocks()
    stages = build_stages(config) if stages is None else stages
    if isinstance(stages.cache, SemanticCache):
        metrics.registry.register(CacheCollector(stages.cache))
    async with AsyncExitStack() as stack:
        upstreams = {
            each.name: await stack.enter_async_context(Upstream(each, build_dialect(each)))
            for each in settings.upstreams
        }
        yield Gateway(
            settings,
            keyring=read_keys(settings),
            upstreams=upstreams,
            stages=stages,
            limiter=KeyLimits(settings.limits),
            recorder=Recording(settings.events, metrics, sink, clocks.wall_s),
            metrics=metrics,
            clocks=clocks,
            feedback=build_door(config, feedback),
        )


def build_door(config: Config, sink: FeedbackSink | None) -> FeedbackDoor | None:
    """Return the door for feedback; None where none can be taken."""
    if sink is None:
        return None
    return FeedbackDoor(config.gateway.feedback, build_limits(config.ingest), sink)


def build_dialect(settings: UpstreamSettings) -> Dialect:
    """Return how an upstream is spoken to, with its key.

    Raises:
        ConfigError: the key is not where it should be.
    """
    key = None
    if settings.api_key_env is not None or settings.api_key_file is not None:
        where = f"gateway.upstreams.{settings.name}"
        key = read_secret(where, settings.api_key_env, settings.api_key_file)
    if settings.kind == "anthropic":
        return AnthropicDialect(settings, key)
    return OpenAIDialect(settings, key)
