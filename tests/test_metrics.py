"""A worker's metrics: the books, how far the group is, and what ails Kizashi; labels are capped."""

from __future__ import annotations

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client.parser import text_string_to_metric_families

from pipeline.core.chunk import ChunkCounts
from pipeline.incidents.complaints import Standing
from pipeline.metrics import OTHER, PARTITIONS_MAX, PATH, BookCollector, MetricsRoute

BOOKS = {
    ("events", 0): ChunkCounts(read=100, stored=90, deadlettered=7, duplicates=3),
    ("events", 1): ChunkCounts(read=5, stored=5),
    ("spans", 0): ChunkCounts(read=2, stored=2, skipped=9),
}
STANDINGS = (Standing("events", 0, 100, 112, late=True, quiet=False),)

LABELS = ("topic", "partition", "fate", "trouble")

Samples = dict[tuple[str, ...], float]


async def scrape(collector: BookCollector) -> Samples:
    app = web.Application()
    MetricsRoute(collector)(app)
    async with TestClient(TestServer(app)) as client:
        answer = await client.get(PATH)
        assert answer.content_type == "text/plain"
        families = text_string_to_metric_families(await answer.text())
        return {
            (sample.name, *(sample.labels[n] for n in LABELS if n in sample.labels)): sample.value
            for family in families
            for sample in family.samples
        }


async def test_what_was_read_is_what_became_of_it() -> None:
    found = await scrape(BookCollector(lambda: BOOKS, lambda: STANDINGS, lambda: {"blind": True}))
    assert found["kizashi_events_read_total", "events", "0"] == 100
    fates = [
        found["kizashi_events_total", "events", "0", fate]
        for fate in ("stored", "deadlettered", "duplicate")
    ]
    assert fates == [90, 7, 3]
    assert found["kizashi_spans_skipped_total", "spans", "0"] == 9
    assert found["kizashi_group_lag_records", "events", "0"] == 12
    assert found["kizashi_group_late", "events", "0"] == 1
    assert found["kizashi_pipeline_trouble", "blind"] == 1


async def test_partitions_over_the_cap_are_counted_as_one() -> None:
    many = {("events", i): ChunkCounts(read=1, stored=1) for i in range(PARTITIONS_MAX + 50)}
    found = await scrape(BookCollector(lambda: many, tuple, dict))
    read = {k: v for k, v in found.items() if k[0] == "kizashi_events_read_total"}
    assert len(read) == PARTITIONS_MAX + 1
    assert sum(read.values()) == PARTITIONS_MAX + 50
    assert read["kizashi_events_read_total", "events", OTHER] == 50
