"""The store on a real ClickHouse: what goes in comes out, once, however often it is sent."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from detectors.bank_verdicts import STATES, VerdictTable
from pipeline.config import ClickHouseSettings
from pipeline.core.chunk import Chunk, ChunkEffects, MoneyColumn
from pipeline.core.dedup import SeenIds
from pipeline.core.histogram import find_buckets, quantile
from pipeline.core.monitors import MonitorRegistry
from pipeline.core.pricing import RATE_MAX, TOKENS_MAX, Pricer
from pipeline.core.step import Admission, StepConfig, admit, derive_effects
from pipeline.core.users import UserKey
from pipeline.errors import PermanentError, RetryableError, RowsRefused, SinkUnavailable
from pipeline.sinks.clickhouse import QueryFailed, Store, open_store
from pipeline.sinks.detections import DetectionStore
from pipeline.sinks.incidents import IncidentStore
from pipeline.sinks.outbox import ClickHouseOutbox
from pipeline.sinks.requests import RequestStore, token_of
from pipeline.sinks.times import to_datetime, to_rfc3339
from schemas.alarm import State, Transition, decode_alarm, encode_alarm
from schemas.clickhouse import read_migrations
from schemas.codec import CodecLimits
from schemas.incident import Action, Notification, Severity, Status, told_by
from schemas.monitor import DEFAULT_GROUPINGS, DIMENSIONS, OTHER, Dimension, Monitor
from schemas.rejection import Reason
from schemas.signal import Family, Signal, Source
from tests.support.clickhouse import ClickHouseServer, few_attempts
from tests.support.events import (
    NOW_MS,
    PRICES,
    TOKENS,
    find_monitors,
    make_chunk,
    make_event,
    make_raw,
    make_traffic,
    receive,
    to_bytes,
)
from tests.support.pagerduty import ALARM, make_incident, make_notification

CONFIG = StepConfig(
    DEFAULT_GROUPINGS, CodecLimits(), store_texts=True, user_key=UserKey("k1", b"key")
)
#: The events of the tests are of a fixed day, and must outlive it.
TTL_DAYS = 10_000
ROUTE = (Dimension.ROUTE,)
PAIR = (Dimension.REQUEST_MODEL, Dimension.ROUTE)


def settings_of(path: Path, database: str) -> ClickHouseSettings:
    days = dict.fromkeys(("requests_ttl_days", "rollups_ttl_days", "texts_ttl_days"), TTL_DAYS)
    return ClickHouseSettings(path=path, database=database, **days)


@pytest.fixture(scope="module")
def shared(embedded_path: Path) -> Iterator[Store]:
    """A migrated store; tests that share it tell their rows apart by `topic`."""
    store = Store(settings_of(embedded_path, f"t{uuid.uuid4().hex[:12]}"))
    store.migrate()
    yield store
    store.close()


@pytest.fixture
def fresh(embedded_path: Path, database: str) -> Iterator[Store]:
    """A store whose database nobody has created yet."""
    store = Store(settings_of(embedded_path, database))
    yield store
    store.close()


@pytest.fixture
def migrated(embedded_path: Path, empty_database: str) -> Iterator[Store]:
    with open_store(settings_of(embedded_path, empty_database)) as store:
        yield store


@pytest.fixture
def topic() -> str:
    """A topic that no other test writes."""
    return f"topic-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def requests(shared: Store) -> RequestStore:
    return RequestStore(shared)


def admit_chunk(chunk: Chunk) -> Admission:
    return admit(chunk, CONFIG.limits, SeenIds(10_000))


def derive(admission: Admission, config: StepConfig = CONFIG, cap: int = 1_000) -> ChunkEffects:
    return derive_effects(admission, config, Pricer(PRICES), MonitorRegistry(cap))


def effects_of(chunk: Chunk) -> ChunkEffects:
    return derive(admit_chunk(chunk))


def store_all(requests: RequestStore, effects: ChunkEffects) -> None:
    assert requests.find_unstorable(effects) == {}
    requests.store_rest(effects, NOW_MS)


def utc(time_ms: int) -> dt.datetime:
    """A time as the driver gives it: UTC, without saying so."""
    return to_datetime(time_ms).replace(tzinfo=None)


def only_row(store: Store, sql: str, **parameters: Any) -> dict[str, Any]:
    names, rows = store.query(sql, parameters)
    assert len(rows) == 1
    return dict(zip(names, rows[0], strict=True))


def count(store: Store, table: str, topic: str) -> int:
    sql = f"SELECT count() FROM {table} WHERE topic = {{topic:String}}"
    return int(store.rows(sql, {"topic": topic})[0][0])


# --- Migrations ------------------------------------------------------------------------------


def tables_of(store: Store) -> dict[str, str]:
    sql = "SELECT name, create_table_query FROM system.tables WHERE database = currentDatabase()"
    return dict(store.rows(sql))


def test_migrations_start_from_nothing_and_change_nothing_twice(fresh: Store) -> None:
    assert fresh.migrate() == [f"{m.number:03} {m.name}" for m in read_migrations()]
    before = tables_of(fresh)
    assert fresh.migrate() == []
    assert tables_of(fresh) == before
    assert f"toIntervalDay({TTL_DAYS})" in before["requests"]
    assert not any("{" in query for query in before.values())
    fresh.use_database()


def test_without_a_schema_there_is_nothing_to_work_in(fresh: Store) -> None:
    with pytest.raises(SinkUnavailable, match="kizashi init"):
        fresh.use_database()


def test_migrations_that_were_cut_off_are_finished(fresh: Store) -> None:
    """The statements ran, the note of it was lost."""
    fresh.migrate()
    before = tables_of(fresh)
    fresh.rows("TRUNCATE TABLE schema_migrations")
    with pytest.raises(SinkUnavailable, match="kizashi init"):
        fresh.use_database()
    assert len(fresh.migrate()) == len(read_migrations())
    assert tables_of(fresh) == before


@pytest.fixture
def over_http(clickhouse_server: ClickHouseServer, database: str) -> Iterator[Store]:
    settings = settings_of(Path(), database)
    store = Store(settings.model_copy(update={"mode": "http", "port": clickhouse_server.port}))
    assert len(store.migrate()) == len(read_migrations())
    yield store
    store.close()


@pytest.fixture
def impatient(
    over_http: Store, clickhouse_server: ClickHouseServer, database: str
) -> Iterator[Store]:
    """Waits so long for an answer: a server that hangs is found out, a slow one is not."""
    settings = ClickHouseSettings(
        mode="http", port=clickhouse_server.port, database=database, timeout_s=3.0
    )
    with open_store(settings) as store:
        yield store


def test_the_same_schema_over_http(over_http: Store, migrated: Store) -> None:
    assert over_http.migrate() == []
    assert set(tables_of(over_http)) == set(tables_of(migrated))
    effects = effects_of(make_chunk([to_bytes(e) for e in make_traffic(1, 100)]))
    for store in (over_http, over_http, migrated):
        store_all(RequestStore(store), effects)
    everything = "SELECT * FROM requests ORDER BY offset"
    assert over_http.rows(everything) == migrated.rows(everything)
    assert rollup_of(over_http) == rollup_of(migrated)
    with pytest.raises(QueryFailed):
        over_http.query("DROP TABLE requests", read_only=True)


def test_the_books_of_a_partition_hold_each_chunk_once(migrated: Store) -> None:
    """Also one that its successor does again; what is missing between chunks is seen."""
    requests, lines = RequestStore(migrated), [to_bytes(e) for e in make_traffic(3, 40)]
    chunks = [
        make_chunk([*lines[:10], b"{", lines[3]], first=0),
        make_chunk(lines[10:20], first=12),
        make_chunk(lines[20:30], first=30),
    ]
    for chunk in (*chunks, chunks[1]):
        store_all(requests, effects_of(chunk))
    books = only_row(migrated, "SELECT * FROM partition_books")
    counted = ("chunks", "read", "stored", "deadlettered", "duplicates", "skipped")
    assert [books[name] for name in counted] == [3, 32, 30, 1, 1, 0]
    assert (books["next_offset"], books["offsets_missing"]) == (40, 8)
    assert books["last_record_time"] == utc(NOW_MS)
    assert migrated.rows("SELECT count() FROM requests") == [(30,)]


@pytest.mark.parametrize("fault", ["refuse_next", "hang_next", "fail_after_apply_next"])
def test_an_insert_whose_answer_is_lost_may_be_repeated(
    impatient: Store, clickhouse_server: ClickHouseServer, fault: str
) -> None:
    requests = RequestStore(impatient)
    effects = effects_of(make_chunk([to_bytes(e) for e in make_traffic(2, 20)]))
    for step in (requests.find_unstorable, partial(requests.store_rest, written_ms=NOW_MS)):
        getattr(clickhouse_server, fault)()
        with pytest.raises(SinkUnavailable):
            step(effects)
        step(effects)
    assert count(impatient, "requests", "events") == 20
    total = "SELECT sum(requests) FROM rollup_1m WHERE grouping = 'request_model'"
    assert impatient.rows(total) == [(20,)]


# --- Values ----------------------------------------------------------------------------------


FULL = make_event(
    "注文-1",
    event_time=NOW_MS / 1000 + 0.007,
    operation="chat",
    provider="openai",
    request_model="gpt-4o",
    response_model="gpt-4o-2024-11-20",
    response_id="resp_1",
    finish_reasons=["stop", "長さ"],
    stream=True,
    temperature=0.5,
    max_tokens=2**31 - 1,
    input_tokens=1_001,
    output_tokens=8,
    cache_read_tokens=1,
    cache_creation_tokens=0,
    reasoning_tokens=3,
    duration_s=1.25,
    time_to_first_chunk_s=0.5,
    prompt_name="要約",
    prompt_version="7",
    route="サポート",
    tenant="日本商事",
    user="ada",
    region="jp",
    cache="miss",
    fallback_from="gpt-4o-mini",
    attempts=2,
    guardrail="pii",
    refusal=False,
    prompt_text="問い\t'\"\\",
    response_text="答え 😀",
)


def test_every_column_comes_back(shared: Store, requests: RequestStore, topic: str) -> None:
    raw = to_bytes(FULL | {"x.鍵": "値", "x.n": {"a": [1, None]}})
    effects = effects_of(make_chunk([raw], 41, topic=topic, epoch="e1", partition=3))
    store_all(requests, effects)
    row = only_row(shared, "SELECT * FROM requests WHERE topic = {topic:String}", topic=topic)
    assert len(row.pop("user_hash")) == len("k1:") + 32
    assert row == {
        "event_time": utc(NOW_MS + 7),
        "event_id": "注文-1",
        "provider": "openai",
        "request_model": "gpt-4o",
        "response_model": "gpt-4o-2024-11-20",
        "route": "サポート",
        "tenant": "日本商事",
        "prompt_name": "要約",
        "prompt_version": "7",
        "region": "jp",
        "operation": "chat",
        "response_id": "resp_1",
        "finish_reasons": ["stop", "長さ"],
        "stream": True,
        "temperature": 0.5,
        "max_tokens": 2**31 - 1,
        "error_type": "",
        "refused": False,
        "partly_refused": False,
        "refusal_source": "provider",
        "truncated": False,
        "empty": False,
        "repetitive": False,
        "language_mismatch": None,
        "off_prompt": None,
        "novel_prompt": None,
        "output_chars": 4,
        "cache": "miss",
        "fallback_from": "gpt-4o-mini",
        "attempts": 2,
        "guardrail": "pii",
        "canary": "",
        "canary_passed": None,
        "input_tokens": 1_001,
        "output_tokens": 8,
        "cache_read_tokens": 1,
        "cache_creation_tokens": 0,
        "reasoning_tokens": 3,
        "cost_usd": Decimal(1_000 * 2_500_000 + 1_250_000 + 8 * 10_000_000).scaleb(-12),
        "duration_s": 1.25,
        "time_to_first_chunk_s": 0.5,
        "time_per_token_s": 0.75 / 7,
        "fingerprint": [],
        "attributes": {"x.鍵": "値", "x.n": '{"a":[1,null]}'},
        "record_time": utc(NOW_MS),
        "topic": topic,
        "epoch": "e1",
        "partition": 3,
        "offset": 41,
    }


def test_what_is_missing_is_null_or_empty(
    shared: Store, requests: RequestStore, topic: str
) -> None:
    store_all(requests, effects_of(make_chunk([make_raw(request_model="m")], topic=topic)))
    row = only_row(shared, "SELECT * FROM requests WHERE topic = {topic:String}", topic=topic)
    nulls = {name for name, value in row.items() if value is None}
    assert nulls == {
        *TOKENS,
        "stream",
        "temperature",
        "max_tokens",
        "attempts",
        "cost_usd",
        "duration_s",
        "time_to_first_chunk_s",
        "time_per_token_s",
        "empty",
        "repetitive",
        "language_mismatch",
        "off_prompt",
        "novel_prompt",
        "output_chars",
        "canary_passed",
    }
    assert (row["finish_reasons"], row["attributes"], row["route"]) == ([], {}, "")


def test_money_is_exact_to_the_picodollar(
    shared: Store, requests: RequestStore, topic: str
) -> None:
    """2,999,999.… tokens at 3.000001 USD a million: no float has so many digits."""
    tokens = {"provider": "anthropic", "request_model": "claude-sonnet-4"}
    events = [make_raw(str(i), input_tokens=199_999 + i, **tokens) for i in range(3)]
    store_all(requests, effects_of(make_chunk(events, topic=topic)))
    sql = "SELECT cost_usd FROM requests WHERE topic = {topic:String} ORDER BY offset"
    expected = [Decimal((199_999 + i) * 3_000_001).scaleb(-12) for i in range(3)]
    assert [row[0] for row in shared.rows(sql, {"topic": topic})] == expected


def test_users_are_stored_as_hashes_alone(
    shared: Store, requests: RequestStore, topic: str
) -> None:
    events = [make_raw(str(i), user=user) for i, user in enumerate(["ada", "bob", "ada", None])]
    admission = admit_chunk(make_chunk(events, topic=topic))
    store_all(requests, derive(admission))
    store_all(requests, derive(admit_chunk(make_chunk(events, topic=topic, epoch="2")), PRIVATE))
    sql = "SELECT user_hash FROM requests WHERE topic = {topic:String} ORDER BY epoch, offset"
    hashes = [row[0] for row in shared.rows(sql, {"topic": topic})]
    assert hashes[0] == hashes[2] != hashes[1]
    assert hashes[3:] == [""] * 5
    everything = shared.rows(
        "SELECT toString(tuple(*)) FROM requests WHERE topic = {t:String}", {"t": topic}
    )
    assert not any("ada" in row[0] for row in everything)


PRIVATE = structs.replace(CONFIG, store_texts=False, user_key=None)


def test_texts_are_stored_only_when_asked_for(
    shared: Store, requests: RequestStore, topic: str
) -> None:
    def texts(event_id: str) -> list[tuple[Any, ...]]:
        sql = "SELECT prompt_text, response_text FROM request_texts WHERE event_id = {id:String}"
        return shared.rows(sql, {"id": event_id})

    asked, unasked = f"{topic}-asked", f"{topic}-unasked"
    for event_id, config in ((asked, CONFIG), (unasked, PRIVATE)):
        raw = make_raw(event_id, prompt_text="問い", response_text="答え")
        store_all(requests, derive(admit_chunk(make_chunk([raw], topic=event_id)), config))
    assert texts(asked) == [("問い", "答え")]
    assert texts(unasked) == []


def test_dead_letters_are_stored_without_their_bytes(
    shared: Store, requests: RequestStore, topic: str
) -> None:
    values = [b"s3cret {}", None, make_raw("good")]
    effects = effects_of(make_chunk(values, 7, topic=topic, epoch="e", partition=2))
    store_all(requests, effects)
    sql = (
        "SELECT offset, reason, bytes, hex(sha256) = hex(SHA256('s3cret {}')), detail, record_time"
        " FROM deadletters WHERE topic = {topic:String} ORDER BY offset"
    )
    rows = shared.rows(sql, {"topic": topic})
    assert [row[:4] for row in rows] == [(7, "invalid_json", 9, 1), (8, "tombstone", 0, 0)]
    assert {row[5] for row in rows} == {utc(NOW_MS)}
    assert not any("s3cret" in row[4] for row in rows)


# --- Once ------------------------------------------------------------------------------------


def rollup_of(store: Store, where: str = "1") -> list[tuple[Any, ...]]:
    """Everything in the rollup, merged, maps included."""
    dimensions = ", ".join(DIMENSIONS)
    sums = ", ".join(f"sum({c})" for c in COUNTERS)
    maps = ", ".join(f"sumMap({c})" for c in MAPS)
    return store.rows(
        f"SELECT minute, grouping, {dimensions}, {sums}, {maps} FROM rollup_1m WHERE {where}"
        f" GROUP BY minute, grouping, {dimensions} ORDER BY minute, grouping, {dimensions}"
    )


MAPS = ("error_types", "duration_ms", "first_chunk_ms", "output_token_us")
COUNTERS = (
    "requests",
    "errors",
    "answered",
    "refusals",
    "truncations",
    "cache_hits",
    "fallbacks",
    *TOKENS,
    "cost_usd",
    "unpriced",
)


def test_the_same_chunk_counts_once_and_another_is_added(migrated: Store) -> None:
    requests = RequestStore(migrated)
    values: list[bytes | None] = [to_bytes(e) for e in make_traffic(1, 200)]
    chunk = make_chunk([*values, b"[]", None])
    for _ in range(3):
        store_all(requests, effects_of(chunk))
    assert count(migrated, "requests", "events") == 200
    assert count(migrated, "deadletters", "events") == 2
    once = rollup_of(migrated)
    assert sum(row[10] for row in once if row[1] == "request_model") == 200

    other = make_chunk(
        [to_bytes(e | {"event.id": f"{i}"}) for i, e in enumerate(make_traffic(1, 200))], 202
    )
    store_all(requests, effects_of(other))
    assert count(migrated, "requests", "events") == 400
    twice = rollup_of(migrated)
    assert [double(row) for row in once] == twice


def double(row: tuple[Any, ...]) -> tuple[Any, ...]:
    numbers = [2 * v for v in row[10:-4]]
    maps = [{k: 2 * v for k, v in each.items()} for each in row[-4:]]
    return (*row[:10], *numbers, *maps)


def test_a_chunk_over_many_days_is_one_insert(
    shared: Store, requests: RequestStore, topic: str
) -> None:
    """More days than ClickHouse lets into one block by itself: late data are no reason to stop."""
    day_ms = 86_400_000
    events = [make_raw(str(i), time_ms=NOW_MS - i * day_ms) for i in range(150)]
    for _ in range(2):
        store_all(requests, effects_of(make_chunk(events, topic=topic)))
    assert count(shared, "requests", topic) == 150


def test_a_crash_between_two_tables_is_mended(
    shared: Store, requests: RequestStore, topic: str
) -> None:
    effects = effects_of(make_chunk([make_raw("a"), b"[]"], topic=topic))
    requests.find_unstorable(effects)
    assert count(shared, "deadletters", topic) == 0
    store_all(requests, effects)
    assert count(shared, "requests", topic) == 1
    assert count(shared, "deadletters", topic) == 1


def test_a_token_names_the_whole_range() -> None:
    source = Source("t", "e", 3, 10, 19)
    tokens = {
        token_of(source),
        token_of(structs.replace(source, epoch="f")),
        token_of(structs.replace(source, partition=4)),
        token_of(structs.replace(source, last_offset=20)),
        token_of(structs.replace(source, first_offset=11)),
        token_of(structs.replace(source, topic="u")),
    }
    assert len(tokens) == 6


# --- Rollups against the requests ------------------------------------------------------------


def test_the_rollup_is_what_the_requests_add_up_to(migrated: Store) -> None:
    chunk = make_chunk([to_bytes(e) for e in make_traffic(2, 800)])
    store_all(RequestStore(migrated), effects_of(chunk))
    for grouping in DEFAULT_GROUPINGS:
        name = ",".join(grouping)
        assert rollup_of(migrated, f"grouping = '{name}'") == recount(migrated, grouping), name


def recount(store: Store, grouping: tuple[Dimension, ...]) -> list[tuple[Any, ...]]:
    """The same rows, from `requests` alone, by SQL alone."""
    inside = " OR ".join(f"{d} != ''" for d in grouping)
    dimensions = ", ".join(f"{d} AS {d}_" if d in grouping else f"'' AS {d}_" for d in DIMENSIONS)
    keys = ", ".join(f"{d}_" for d in DIMENSIONS)
    return store.rows(
        f"""
        SELECT toStartOfMinute(event_time) AS minute, '{",".join(grouping)}' AS name, {dimensions},
               count(), countIf(error_type != ''), countIf(error_type = ''), countIf(refused),
               countIf(truncated), countIf(cache = 'hit'), countIf(fallback_from != ''),
               sum(ifNull(input_tokens, 0)), sum(ifNull(output_tokens, 0)),
               sum(ifNull(cache_read_tokens, 0)), sum(ifNull(cache_creation_tokens, 0)),
               sum(ifNull(reasoning_tokens, 0)),
               sum(ifNull(cost_usd, 0)), countIf(cost_usd IS NULL),
               sumMapIf(map(toString(error_type), toUInt64(1)), error_type != ''),
               {bucket_map("duration_s * 1e3", "1")},
               {bucket_map("time_to_first_chunk_s * 1e3", "error_type = '' AND cache != 'hit'")},
               {bucket_map("time_per_token_s * 1e6", "1")}
        FROM requests WHERE {inside}
        GROUP BY minute, {keys} ORDER BY minute, {keys}
        """
    )


def bucket_map(value: str, condition: str) -> str:
    bucket = f"toInt16(greatest(-320, least(992, ceil(log2(ifNull({value}, 1)) * 32) - 1)))"
    return f"sumMapIf(map({bucket}, toUInt64(1)), {value} IS NOT NULL AND {condition})"


@pytest.mark.parametrize("q", [0.01, 0.5, 0.9, 0.99, 1.0])
def test_quantiles_of_the_histogram_are_close_to_the_exact_ones(migrated: Store, q: float) -> None:
    chunk = make_chunk([to_bytes(e) for e in make_traffic(3, 500)])
    store_all(RequestStore(migrated), effects_of(chunk))
    sql = (
        f"SELECT histogramQuantile(sumMap(duration_ms), {q}) FROM rollup_1m"
        " WHERE grouping = 'request_model'"
    )
    ((found,),) = migrated.rows(sql)
    durations = sorted(
        v[0] * 1e3
        for v in migrated.rows("SELECT duration_s FROM requests WHERE duration_s IS NOT NULL")
    )
    exact = durations[max(1, -int(-q * len(durations) // 1)) - 1]
    assert found == pytest.approx(max(exact, 2.0**-10), rel=0.011)
    assert found == pytest.approx(quantile(fill(durations), q))


def fill(values: list[float]) -> dict[int, int]:
    buckets = find_buckets(np.array(values)).tolist()
    return {b: buckets.count(b) for b in buckets}


def test_a_quantile_of_nothing_is_null(shared: Store) -> None:
    sql = "SELECT histogramQuantile(CAST(map(), 'Map(Int16, UInt64)'), 0.5)"
    assert shared.rows(sql) == [(None,)]


# --- Rows that ClickHouse refuses ------------------------------------------------------------


@pytest.fixture
def strict(migrated: Store) -> Iterator[Store]:
    """A store that will not have attempts above 5."""
    with few_attempts(migrated):
        yield migrated


def chunk_with_bad(bad: set[int], size: int = 13) -> Chunk:
    return make_chunk([make_raw(f"e{i}", attempts=9 if i in bad else 1) for i in range(size)], 100)


def stored_ids(store: Store) -> list[str]:
    return [row[0] for row in store.rows("SELECT event_id FROM requests ORDER BY offset")]


@pytest.mark.parametrize(
    "bad", [{0}, {6}, {12}, {0, 12}, {5, 6, 7}, set(range(13))], ids=lambda b: str(sorted(b))
)
def test_bad_rows_are_found_and_their_neighbours_stored(strict: Store, bad: set[int]) -> None:
    requests = RequestStore(strict)
    good = [f"e{i}" for i in range(13) if i not in bad]
    # A worker that dies after the first time finds the same again.
    for _ in range(2):
        admission = admit_chunk(chunk_with_bad(bad))
        refused = requests.find_unstorable(derive(admission))
        assert set(refused) == bad
        assert all("few" in why for why in refused.values())
        assert stored_ids(strict) == good
        effects = derive(admission.without(refused))
        requests.store_rest(effects, NOW_MS)
    assert effects.counts.stored == len(good)
    assert {d.rejected.reason for d in effects.deadletters} == {Reason.UNSTORABLE}
    letters = strict.rows("SELECT offset, reason FROM deadletters ORDER BY offset")
    assert letters == [(100 + i, "unstorable") for i in sorted(bad)]
    total = strict.rows("SELECT sum(requests) FROM rollup_1m WHERE grouping = 'request_model'")
    assert total == [(len(good),)]


def test_what_cannot_be_stored_counts_as_seen_after_a_crash(strict: Store) -> None:
    """As it did before: else its repeat is searched for anew, and a block halved elsewhere."""
    requests = RequestStore(strict)
    admission = admit_chunk(chunk_with_bad({5}))
    effects = derive(admission.without(requests.find_unstorable(derive(admission))))
    requests.store_rest(effects, NOW_MS)
    source = structs.replace(effects.source, first_offset=200, last_offset=210)
    assert requests.read_recent_ids(source, 100) == [f"e{i}" for i in range(13)]
    assert requests.read_recent_ids(source, 8) == [f"e{i}" for i in range(5, 13)]


def test_a_crash_amid_the_search_doubles_nothing(strict: Store) -> None:
    """The first halves are stored, then the worker dies; its successor stores them again."""
    effects = derive(admit_chunk(chunk_with_bad({9})))

    class Dying(Exception):
        pass

    class DyingStore:
        inserts = 0

        def insert(self, *arguments: Any) -> None:
            strict.insert(*arguments)
            self.inserts += 1
            if self.inserts == 2:
                raise Dying

    with pytest.raises(Dying):
        RequestStore(DyingStore()).find_unstorable(effects)  # type: ignore[arg-type]
    assert 0 < len(stored_ids(strict)) < 12
    assert set(RequestStore(strict).find_unstorable(effects)) == {9}
    assert stored_ids(strict) == [f"e{i}" for i in range(13) if i != 9]


def test_the_dearest_request_that_there_can_be_is_stored_to_the_last_digit(
    shared: Store, requests: RequestStore, topic: str
) -> None:
    """The column is int64 beneath, and so is every cost."""
    effects = effects_of(make_chunk([make_raw()], topic=topic))
    most = MoneyColumn(np.array([3 * TOKENS_MAX * RATE_MAX]), np.array([True]))
    assert int(most.picodollars[0]) == 3 * TOKENS_MAX * RATE_MAX
    shared.insert("requests", effects.requests | {"cost_usd": most})
    sql = "SELECT cost_usd FROM requests WHERE topic = {topic:String}"
    expected = Decimal(3 * TOKENS_MAX * RATE_MAX).scaleb(-12)
    assert shared.rows(sql, {"topic": topic}) == [(expected,)]


# --- What is read back after a crash ---------------------------------------------------------


def test_recent_ids_are_the_last_below_the_range_oldest_first(
    requests: RequestStore, topic: str
) -> None:
    for first in (0, 5, 10):
        for prefix, options in (("e", {}), ("f", {"epoch": "2"}), ("g", {"partition": 1})):
            events = [make_raw(f"{prefix}{first + i}") for i in range(5)]
            store_all(requests, effects_of(make_chunk(events, first, topic=topic, **options)))
    source = Source(topic, "1", 0, 10, 14)
    assert requests.read_recent_ids(source, 3) == ["e7", "e8", "e9"]
    assert requests.read_recent_ids(source, 100) == [f"e{i}" for i in range(10)]
    assert requests.read_recent_ids(source, 0) == []
    assert requests.read_recent_ids(structs.replace(source, first_offset=0), 3) == []
    assert requests.read_recent_ids(structs.replace(source, epoch="3"), 3) == []


def test_monitors_are_read_back_up_to_the_cap(migrated: Store) -> None:
    requests, events = RequestStore(migrated), make_traffic(4, 100)
    store_all(requests, effects_of(make_chunk([to_bytes(e) for e in events])))
    wanted = {m for r in receive(events) for m in find_monitors(r, [ROUTE, PAIR])}
    found = requests.read_monitors([ROUTE, PAIR], 1_000)
    assert set(found) == wanted
    assert len(found) == len(wanted)
    assert [m.grouping for m in requests.read_monitors([ROUTE, PAIR], 1)] == [ROUTE, PAIR]


def test_a_registry_read_back_admits_the_same_monitors(migrated: Store) -> None:
    """What was counted under `OTHER` must not take the place of a monitor that was admitted."""
    requests = RequestStore(migrated)
    lost = MonitorRegistry(2)
    routes = ("z", "y", "x", "w")
    chunk = make_chunk([make_raw(str(i), route=r) for i, r in enumerate(routes)])
    store_all(requests, derive_effects(admit_chunk(chunk), CONFIG, Pricer(PRICES), lost))
    again = MonitorRegistry(2, requests.read_monitors(DEFAULT_GROUPINGS, 2))
    for route in routes:
        monitor = Monitor(ROUTE, (route,))
        assert again.admit(monitor) == lost.admit(monitor)
    assert again.admit(Monitor(ROUTE, ("v",))) == Monitor(ROUTE, (OTHER,))


# --- Errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda s: s.query("SELEC 1"), QueryFailed),
        (lambda s: s.query("SELECT * FROM nowhere"), QueryFailed),
        (lambda s: s.query("SELECT throwIf(1)"), QueryFailed),
        (lambda s: s.rows("SELECT * FROM nowhere"), SinkUnavailable),
    ],
    ids=["syntax", "no table", "at run time", "ours"],
)
def test_errors_are_of_two_kinds(
    shared: Store, call: Callable[[Store], Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        call(shared)


def test_a_missing_table_is_for_an_operator_to_mend_and_costs_no_rows(fresh: Store) -> None:
    effects = effects_of(make_chunk([make_raw("a")]))
    fresh.migrate()
    fresh.rows("DROP TABLE requests")
    with pytest.raises(SinkUnavailable):
        RequestStore(fresh).find_unstorable(effects)


def test_nobody_listens() -> None:
    with pytest.raises(SinkUnavailable):
        Store(ClickHouseSettings(mode="http", port=1))
    assert issubclass(SinkUnavailable, RetryableError)
    assert issubclass(RowsRefused, PermanentError)
    assert issubclass(QueryFailed, PermanentError)


WRITES = (
    "INSERT INTO requests (event_id) VALUES ('x')",
    "CREATE TABLE x (a Int8) ENGINE = Memory",
    "DROP TABLE requests",
    "TRUNCATE TABLE requests",
    "ALTER TABLE requests DELETE WHERE 1",
    "OPTIMIZE TABLE requests",
    "SET readonly = 0",
    "SELECT 1 SETTINGS readonly = 0",
    "INSERT INTO FUNCTION file('x.csv') SELECT 1",
    "CREATE DATABASE x",
)


def test_a_read_only_query_reads(shared: Store) -> None:
    sql = "SELECT {n:UInt8} + number AS n, '日本' AS s FROM numbers(2)"
    assert shared.query(sql, {"n": 5}, read_only=True) == (["n", "s"], [(5, "日本"), (6, "日本")])


@pytest.mark.parametrize("sql", WRITES)
def test_a_read_only_query_does_not_write_and_leaves_the_store_as_it_was(
    migrated: Store, sql: str
) -> None:
    before = tables_of(migrated)
    with pytest.raises(QueryFailed):
        migrated.query(sql, read_only=True)
    assert tables_of(migrated) == before
    # The next one may write again, in the same database.
    store_all(RequestStore(migrated), effects_of(make_chunk([make_raw("a")])))
    assert stored_ids(migrated) == ["a"]


# --- Verdicts, alarms, snapshots -------------------------------------------------------------


def make_verdicts(time_ms: int, log_evidence: float) -> VerdictTable:
    """Two monitors; of the first only refusals have a verdict, of the second only errors."""

    def both(value: float) -> np.ndarray:
        return np.full((2, 2), value)

    return VerdictTable(
        monitors=[
            Monitor((Dimension.REQUEST_MODEL, Dimension.ROUTE), ("gpt-4o", "サポート")),
            Monitor((Dimension.TENANT,), ("日本商事",)),
        ],
        families=(Family.REFUSAL, Family.ERROR),
        signals=(Signal.REFUSAL, Signal.ERROR),
        log_thresholds=(9.25, 9.25),
        time_ms=np.array([time_ms, time_ms]),
        ready=np.eye(2, dtype=np.bool_),
        state=np.array([[STATES.index(State.QUIET)] * 2, [STATES.index(State.ALARMED)] * 2]),
        log_evidence=both(log_evidence),
        baseline_count=np.array([[21, 0], [0, 22]]),
        baseline_total=both(1_000).astype(int),
        baseline_low=both(0.01),
        baseline_high=both(0.04),
        current_count=both(3).astype(int),
        current_total=both(99).astype(int),
        change_time_ms=both(NOW_MS - 60_001).astype(int),
    )


def test_verdicts_are_idempotent(migrated: Store) -> None:
    detections = DetectionStore(migrated)
    tables = [make_verdicts(NOW_MS, -1.5), make_verdicts(NOW_MS + 60_000, float("-inf"))]
    for _ in range(2):
        detections.store_verdicts(tables)
    detections.store_verdicts([])
    names, rows = migrated.query(
        "SELECT * EXCEPT written_at FROM verdicts FINAL ORDER BY time, tenant"
    )
    assert len(rows) == 4
    first, second = ({k: v for k, v in zip(names, r, strict=True) if v != ""} for r in rows[:2])
    assert first == {
        "time": utc(NOW_MS),
        "grouping": "request_model,route",
        "request_model": "gpt-4o",
        "route": "サポート",
        "family": "refusal",
        "signal": "refusal",
        "state": "quiet",
        "log_evidence": -1.5,
        "log_threshold": 9.25,
        "baseline_count": 21,
        "baseline_total": 1_000,
        "baseline_low": 0.01,
        "baseline_high": 0.04,
        "current_count": 3,
        "current_total": 99,
        "change_time": utc(NOW_MS - 60_001),
    }
    changed = {k: v for k, v in second.items() if v != first.get(k)}
    assert changed == {
        "grouping": "tenant",
        "tenant": "日本商事",
        "family": "error",
        "signal": "error",
        "state": "alarmed",
        "baseline_count": 22,
    }


def test_alarms_are_idempotent_and_whole(migrated: Store) -> None:
    detections = DetectionStore(migrated)
    cleared = structs.replace(
        ALARM, transition=Transition.CLEARED, time_ms=NOW_MS, clear_reason="recovered"
    )
    for _ in range(2):
        detections.store_alarms([ALARM, cleared])
    detections.store_alarms([])
    rows = migrated.rows("SELECT alarm, monitor, e_value FROM alarms FINAL ORDER BY time")
    assert {decode_alarm(row[0].encode()).transition: row[0] for row in rows} == {
        a.transition: encode_alarm(a).decode() for a in (ALARM, cleared)
    }
    assert len(rows) == 2
    assert {tuple(row[1].items()) for row in rows} == {tuple(ALARM.monitor.items())}
    assert {row[2] for row in rows} == {ALARM.e_value}


def test_the_latest_snapshot_is_loaded(shared: Store, topic: str) -> None:
    detections = DetectionStore(shared)
    assert detections.load_snapshot(topic, "1", 0) is None
    state = bytes(range(256)) * 40
    for position, payload in (
        (10, [b"old"]),
        (30, [state[:7], b"", state[7:]]),
        (30, [state]),
        (20, [b"late"]),
    ):
        detections.save_snapshot(topic, "1", 0, position, payload)
    detections.save_snapshot(topic, "2", 0, 99, [b"another epoch"])
    detections.save_snapshot(topic, "1", 1, 99, [])
    assert detections.load_snapshot(topic, "1", 0) == (30, state)
    assert detections.load_snapshot(topic, "1", 1) == (99, b"")
    kept = "SELECT count() FROM detector_snapshots FINAL WHERE topic = {topic:String}"
    assert shared.rows(kept, {"topic": topic}) == [(3,)]


def test_memory_is_given_back_without_a_row_lost(shared: Store, topic: str) -> None:
    detections = DetectionStore(shared)
    detections.save_snapshot(topic, "1", 0, 7, [b"state"])
    shared.release_memory()
    assert detections.load_snapshot(topic, "1", 0) == (7, b"state")


# --- Incidents -------------------------------------------------------------------------------


def test_an_incident_stands_as_its_highest_version_says(migrated: Store) -> None:
    incidents = IncidentStore(migrated)
    first = make_incident("a", 1, summary="拒否が増えました")
    second = make_incident("a", 2, severity=Severity.CRITICAL, cleared=("a1",))
    resolved = make_incident("a", 3, status=Status.RESOLVED)
    for version in (first, resolved, second, first):
        incidents.save(version)
    assert incidents.load_recent() == [resolved]
    row = only_row(migrated, "SELECT * FROM incidents")
    assert row["version"] == 3
    assert (row["status"], row["cause"]) == ("resolved", {"prompt_version": "7"})
    assert row["resolved_at"] == utc(resolved.resolved_ms or 0)
    assert row["changed_at"] == utc(resolved.change_time_ms)


def test_open_incidents_are_never_cut_off(migrated: Store) -> None:
    incidents = IncidentStore(migrated)
    for i in range(4):
        incidents.save(make_incident(f"done-{i}", status=Status.RESOLVED, opened_ms=NOW_MS + i))
    incidents.save(make_incident("old but open", opened_ms=NOW_MS - 10**9))
    loaded = [i.incident_id for i in incidents.load_recent(3)]
    assert loaded == ["old but open", "done-3", "done-2"]


def test_a_notification_stays_as_it_ended(migrated: Store) -> None:
    incidents = IncidentStore(migrated)
    pending = make_notification()
    incidents.save_notifications([pending])
    assert incidents.load_pending() == [pending]
    tried = structs.replace(pending, attempts=4)
    incidents.save_notifications([tried])
    assert incidents.load_pending() == [tried]
    sent = structs.replace(pending, attempts=1, sent_ms=NOW_MS)
    incidents.save_notifications([sent])
    # A worker that was fenced still writes what it knew.
    for late in (pending, tried):
        incidents.save_notifications([late])
    assert incidents.load_pending() == []
    assert incidents.load_told(pending.incident_id) == [told_by(sent)]


def test_a_refused_notification_is_not_pending(migrated: Store) -> None:
    incidents = IncidentStore(migrated)
    refused = structs.replace(make_notification(), failure="400: invalid", attempts=1)
    incidents.save_notifications([make_notification(), refused])
    incidents.save_notifications([])
    assert incidents.load_pending() == []
    assert incidents.load_told("inc-1") == [told_by(refused)]


def test_what_stands_open_somewhere_is_what_was_last_sent_there(migrated: Store) -> None:
    incidents = IncidentStore(migrated)

    def sent(name: str, version: int, action: Action, destination: str) -> Notification:
        made = make_notification(action, make_incident(name, version), destination)
        return structs.replace(made, sent_ms=NOW_MS + version)

    risen = sent("a", 2, Action.UPDATE, "alertmanager")
    over = sent("b", 2, Action.RESOLVE, "alertmanager")
    pending = make_notification(Action.TRIGGER, make_incident("c", 1), "alertmanager")
    elsewhere = sent("d", 1, Action.TRIGGER, "webhook")
    opened = [sent(name, 1, Action.TRIGGER, "alertmanager") for name in "ab"]
    incidents.save_notifications([*opened, risen, over, pending, elsewhere])
    assert incidents.load_standing("alertmanager", 10) == [risen]
    assert incidents.load_standing("webhook", 10) == [elsewhere]


async def test_the_outbox_keeps_order(migrated: Store) -> None:
    with ThreadPoolExecutor(1) as executor:
        outbox = ClickHouseOutbox(IncidentStore(migrated), executor)
        assert await outbox.pending() == []
        incident = make_incident("b", 12)
        notifications = [
            make_notification(Action.UPDATE, incident),
            make_notification(Action.TRIGGER, make_incident("b", 2)),
            make_notification(Action.TRIGGER, make_incident("b", 2), "webhook"),
            make_notification(Action.TRIGGER, make_incident("a", 3)),
        ]
        await outbox.put(notifications)
        found = [(n.incident_id, n.destination, n.sequence) for n in await outbox.pending()]
        assert found == [
            ("a", "pagerduty", 3),
            ("b", "pagerduty", 2),
            ("b", "pagerduty", 12),
            ("b", "webhook", 2),
        ]
        assert len(await outbox.history("b")) == 3
        assert await outbox.history("c") == []


def test_times_are_utc() -> None:
    assert to_datetime(NOW_MS) == dt.datetime(2025, 10, 9, 8, 53, 20, tzinfo=dt.UTC)
    assert to_rfc3339(NOW_MS + 7) == "2025-10-09T08:53:20.007Z"
