"""A worker's books for Prometheus, at `/metrics` of the page's server.

Of one process: let Prometheus scrape each worker, and add. Counters begin at 0 with the process;
what outlives it is in the table `chunk_books`. Labels are topics and partitions, at most
`PARTITIONS_MAX` of them: what is over that is counted under `OTHER`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pipeline.core.chunk import ChunkCounts
from pipeline.incidents.complaints import Standing

PATH = "/metrics"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PARTITIONS_MAX = 1_000
OTHER = "__other__"
#: Fate → field of `ChunkCounts`; together they are what was read.
FATES = {"stored": "stored", "deadlettered": "deadlettered", "duplicate": "duplicates"}

Place = tuple[str, int]


class BookCollector(Collector):
    """Reads the books whenever it is asked."""

    def __init__(
        self,
        books: Callable[[], Mapping[Place, ChunkCounts]],
        standings: Callable[[], tuple[Standing, ...]],
        troubles: Callable[[], Mapping[str, bool]],
    ) -> None:
        """`standings` and `troubles` are empty where another worker looks after the group."""
        self._books = books
        self._standings = standings
        self._troubles = troubles

    def collect(self) -> Iterator[Metric]:
        """Give the metrics as they are now."""
        yield from self._count_events()
        yield from self._measure_group()
        trouble = GaugeMetricFamily(
            "kizashi_pipeline_trouble",
            "1 while Kizashi has an incident of its own; told by the worker that owns them.",
            labels=["trouble"],
        )
        for name, stands in self._troubles().items():
            trouble.add_metric([name], int(stands))
        yield trouble

    def _count_events(self) -> Iterator[Metric]:
        books = cap_places(self._books())
        read = CounterMetricFamily(
            "kizashi_events_read", "Events read.", labels=["topic", "partition"]
        )
        fates = CounterMetricFamily(
            "kizashi_events",
            "Events by what became of them.",
            labels=["topic", "partition", "fate"],
        )
        skipped = CounterMetricFamily(
            "kizashi_spans_skipped",
            "Spans that are no request to a model.",
            labels=["topic", "partition"],
        )
        for place, counts in books.items():
            read.add_metric(place, counts.read)
            skipped.add_metric(place, counts.skipped)
            for fate, field in FATES.items():
                fates.add_metric([*place, fate], getattr(counts, field))
        yield from (read, fates, skipped)

    def _measure_group(self) -> Iterator[Metric]:
        lag = GaugeMetricFamily(
            "kizashi_group_lag_records",
            "Records that nobody has finished; told by the worker that owns the incidents.",
            labels=["topic", "partition"],
        )
        late = GaugeMetricFamily(
            "kizashi_group_late",
            "1 where one of them was written longer ago than watch.behind_s.",
            labels=["topic", "partition"],
        )
        for each in self._standings()[:PARTITIONS_MAX]:
            place = [each.topic, str(each.partition)]
            lag.add_metric(place, each.lag)
            late.add_metric(place, int(each.late))
        yield from (lag, late)


def cap_places(books: Mapping[Place, ChunkCounts]) -> dict[tuple[str, str], ChunkCounts]:
    """Return the books under labels, those over the cap as one for each topic."""
    capped: dict[tuple[str, str], ChunkCounts] = {}
    for i, ((topic, partition), counts) in enumerate(sorted(books.items())):
        labels = (topic, str(partition) if i < PARTITIONS_MAX else OTHER)
        capped[labels] = capped.get(labels, ChunkCounts()).plus(counts)
    return capped


class MetricsRoute:
    """Adds the route to an aiohttp application; the page's own token guards it."""

    def __init__(self, collector: Collector) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(collector)

    def __call__(self, app: web.Application) -> None:
        app.router.add_get(PATH, self.handle)

    async def handle(self, _: web.Request) -> web.Response:
        """Answer a scrape."""
        return web.Response(
            body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE}
        )
