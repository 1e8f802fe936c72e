"""Metrics for Prometheus, under the names that dashboards of gateways use and OpenTelemetry's.

Labels are capped: models and upstreams are those of the configuration, statuses those of
`gateway.errors`. Of one process: with several, let Prometheus scrape each.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.answer import Usage
from gateway.cache import Gone, SemanticCache
from gateway.exchange import Exchange
from gateway.spool import Slot, Spool
from pipeline.core.pricing import PriceTable, cost_of
from pipeline.core.pricing import Usage as PricedUsage

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: OpenTelemetry's advice for durations of GenAI operations.
DURATION_BUCKETS_S = tuple(0.01 * 2**n for n in range(14))
TOKEN_BUCKETS = tuple(float(4**n) for n in range(14))
#: Stands for what no model is configured for: names of strangers are no labels.
OTHER = "__other__"
_PICO = 1e-12


class SpoolCollector(Collector):
    """What became of a spool's records, read from its ledger, which outlives the process."""

    def __init__(self, spool: Spool, what: Literal["events", "feedback"]) -> None:
        self._spool = spool
        self._what = what

    def collect(self) -> Iterator[Metric]:
        """Give the metrics as they are now."""
        ledger, name = self._spool.ledger, f"kizashi_gateway_{self._what}"
        counted = CounterMetricFamily(
            name, f"{self._what.title()}: taken by the gateway, sent to Kafka.", labels=["what"]
        )
        counted.add_metric(["taken"], ledger[Slot.TAKEN])
        counted.add_metric(["sent"], ledger[Slot.SENT])
        yield counted
        lost = CounterMetricFamily(
            f"{name}_lost", "What of them never arrives, and why.", labels=["reason"]
        )
        for loss, number in ledger.lost.items():
            lost.add_metric([loss.value], number)
        yield lost
        prefix = "kizashi_gateway" if self._what == "events" else name
        waiting = self._spool.waiting_bytes
        yield GaugeMetricFamily(f"{prefix}_spool_bytes", "On disk.", waiting)


class CacheCollector(Collector):
    """What the semantic cache holds, and what became of the rest."""

    def __init__(self, cache: SemanticCache) -> None:
        self._cache = cache

    def collect(self) -> Iterator[Metric]:
        """Give the metrics as they are now."""
        cache = self._cache
        yield GaugeMetricFamily("kizashi_gateway_cache_entries", "Answers kept.", len(cache))
        yield GaugeMetricFamily("kizashi_gateway_cache_bytes", "Of memory, about.", cache.bytes)
        yield CounterMetricFamily("kizashi_gateway_cache_stored", "Answers.", cache.stored)
        gone = CounterMetricFamily(
            "kizashi_gateway_cache_evicted", "Answers that went, and why.", labels=["reason"]
        )
        for why in Gone:
            gone.add_metric([why.value], cache.gone[why])
        yield gone


class Metrics:
    """All metrics of one gateway, in a registry of their own."""

    def __init__(self, models: frozenset[str], prices: PriceTable) -> None:
        registry = self.registry = CollectorRegistry()
        self._models = models
        self._prices = prices
        self._requests = Counter(
            "llm_requests", "Requests that were answered.", ("model", "status"), registry=registry
        )
        self._latency = Histogram(
            "llm_latency_seconds",
            "From a request's arrival to its answer's end.",
            ("model",),
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        )
        self._tokens = Counter(
            "llm_tokens_used",
            "Tokens; input includes cached, output includes reasoning.",
            ("model", "token_type"),
            registry=registry,
        )
        self._cost = Counter(
            "llm_cost_dollars", "By the price table.", ("model",), registry=registry
        )
        self._unpriced = Counter(
            "llm_requests_unpriced", "The price table lacks them.", ("model",), registry=registry
        )
        self._refused = Counter(
            "kizashi_gateway_turned_away",
            "Requests that make no event: no valid key, no readable body, too many at once.",
            ("code",),
            registry=registry,
        )
        self._cache = Counter(
            "kizashi_gateway_cache", "What the cache said.", ("outcome",), registry=registry
        )
        self._saved_tokens = Counter(
            "kizashi_gateway_cache_saved_tokens",
            "What answers from the cache used when they were made.",
            ("model", "token_type"),
            registry=registry,
        )
        self._saved_cost = Counter(
            "kizashi_gateway_cache_saved_dollars",
            "What they would have cost, by the price table.",
            ("model",),
            registry=registry,
        )
        self._guardrails = Counter(
            "kizashi_gateway_guardrails", "What guardrails did.", ("action",), registry=registry
        )
        self.under_way = Gauge(
            "kizashi_gateway_requests_under_way", "Requests being served.", registry=registry
        )
        self._make_gen_ai(registry)

    def _make_gen_ai(self, registry: CollectorRegistry) -> None:
        """OpenTelemetry's metrics of a GenAI client, which the gateway is to its upstreams."""
        names = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
        self._duration = Histogram(
            "gen_ai_client_operation_duration_seconds",
            "OpenTelemetry's gen_ai.client.operation.duration.",
            (*names, "error_type"),
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        )
        self._first_chunk = Histogram(
            "gen_ai_client_operation_time_to_first_chunk_seconds",
            "OpenTelemetry's gen_ai.client.operation.time_to_first_chunk.",
            names,
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        )
        self._usage = Histogram(
            "gen_ai_client_token_usage",
            "OpenTelemetry's gen_ai.client.token.usage.",
            (*names, "gen_ai_token_type"),
            buckets=TOKEN_BUCKETS,
            registry=registry,
        )

    def turn_away(self, code: str) -> None:
        """Count a request that never became an exchange."""
        self._refused.labels(code).inc()

    def observe(self, exchange: Exchange, now: dt.datetime) -> None:
        """Count a request that is over."""
        model = exchange.model if exchange.model in self._models else OTHER
        self._requests.labels(model, exchange.error_type or "ok").inc()
        self._latency.labels(model).observe(exchange.duration_s)
        if exchange.cache is not None:
            self._cache.labels(exchange.cache).inc()
        for verdict in exchange.verdicts:
            self._guardrails.labels(verdict.action.value).inc()
        self._observe_usage(exchange, model, now)
        names = (exchange.asked.operation, exchange.provider or "", model)
        self._duration.labels(*names, exchange.error_type or "").observe(exchange.duration_s)
        if exchange.first_chunk_s is not None:
            self._first_chunk.labels(*names).observe(exchange.first_chunk_s)

    def _observe_usage(self, exchange: Exchange, model: str, now: dt.datetime) -> None:
        usage = exchange.usage
        names = (exchange.asked.operation, exchange.provider or "", model)
        for kind, tokens in (("input", usage.input_tokens), ("output", usage.output_tokens)):
            if tokens is not None:
                self._tokens.labels(model, kind).inc(tokens)
                self._usage.labels(*names, kind).observe(tokens)
        for kind, tokens in (
            ("cached", usage.cache_read_tokens),
            ("cache_write", usage.cache_creation_tokens),
            ("reasoning", usage.reasoning_tokens),
        ):
            if tokens:
                self._tokens.labels(model, kind).inc(tokens)
        cost = self._price(exchange, usage, exchange.provider, now)
        if cost is None:
            self._unpriced.labels(model).inc()
        else:
            self._cost.labels(model).inc(cost * _PICO)
        self._observe_saved(exchange, model, now)

    def _observe_saved(self, exchange: Exchange, model: str, now: dt.datetime) -> None:
        looked = exchange.looked
        if looked is None or looked.saved is None:
            return
        saved = looked.saved
        for kind, tokens in (("input", saved.input_tokens), ("output", saved.output_tokens)):
            self._saved_tokens.labels(model, kind).inc(tokens or 0)
        cost = self._price(exchange, saved, looked.provider, now, is_saved=True)
        self._saved_cost.labels(model).inc((cost or 0) * _PICO)

    def _price(
        self,
        exchange: Exchange,
        usage: Usage,
        provider: str | None,
        now: dt.datetime,
        *,
        is_saved: bool = False,
    ) -> int | None:
        price = self._prices.resolve(
            exchange.model,
            provider,
            int(now.timestamp() * 1000),
            exchange.answer.response_model,
        )
        used = PricedUsage(
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cache_read_tokens=usage.cache_read_tokens,
            cache_creation_tokens=usage.cache_creation_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            cache_hit=exchange.cache == "hit" and not is_saved,
            failed=exchange.error is not None and not is_saved,
        )
        return cost_of(used, price)

    def render(self) -> bytes:
        """Return Prometheus's text format."""
        return generate_latest(self.registry)
