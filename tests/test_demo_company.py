"""The simulated company: repeatable, valid, true to its trace, quiet where nothing is scripted."""

from __future__ import annotations

import gzip
import json
import uuid
from collections import Counter
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from scipy import stats

from pipeline.core.features import TRUNCATION_REASONS
from pipeline.core.refusal import Refusal, classify_text, decide_refusal
from pipeline.demo import cast
from pipeline.demo.company import DUPLICATES, MALFORMED, Company, Record, RecordKind, build_event
from pipeline.demo.malformed import MALFORMATIONS
from pipeline.demo.plan import Outcome, Plan, plan_hour
from pipeline.demo.script import SCRIPT, Outage, PromptRollout, ScriptedIncident, Slowdown
from pipeline.demo.texts import load_wording
from pipeline.demo.trace import HOUR_MS, load_trace, pack_trace
from schemas.codec import DEFAULT_LIMITS, decode_event
from schemas.event import Event, Received
from schemas.feedback import ReceivedFeedback, decode_feedback
from schemas.monitor import DEFAULT_GROUPINGS
from schemas.rejection import Rejected
from schemas.signal import Family

START_MS = 1_790_000_000_000
#: With fixed seeds these tests always say the same; at this level a fair draw rarely fails one.
LEVEL = 1e-4
ROLLOUT, OUTAGE, SLOWDOWN = SCRIPT
_decode = msgspec.json.Decoder(Event).decode


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return list(Company(START_MS).records())


@pytest.fixture(scope="module")
def events(records: list[Record]) -> list[Event]:
    return [_decode(r.raw) for r in records if r.kind is RecordKind.EVENT]


@pytest.fixture(scope="module")
def quiet_events() -> list[Event]:
    company = Company(START_MS, script=())
    return [_decode(r.raw) for r in company.records() if r.kind is RecordKind.EVENT]


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_hour(load_trace(), SCRIPT, Company(START_MS).seed)


def arrival_ms(event: Event) -> int:
    """A UUIDv7 begins with its time."""
    return uuid.UUID(event.event_id).int >> 80


def minute(event: Event) -> float:
    return (arrival_ms(event) - START_MS) / 60_000


def is_touched(event: Event, incident: ScriptedIncident) -> bool:
    in_time = incident.starts <= (arrival_ms(event) - START_MS) / HOUR_MS < incident.ends
    return in_time and all(getattr(event, k) == v for k, v in incident.where.items())


def is_refused(event: Event) -> bool:
    verdict, _ = decide_refusal(event.refusal, event.finish_reasons, event.response_text)
    return verdict is Refusal.FULL and event.error_type is None


def is_truncated(event: Event) -> bool:
    return not TRUNCATION_REASONS.isdisjoint(event.finish_reasons or ())


def token_s(event: Event) -> float:
    assert event.duration_s is not None
    assert event.time_to_first_chunk_s is not None
    assert event.output_tokens is not None
    return (event.duration_s - event.time_to_first_chunk_s) / (event.output_tokens - 1)


def is_measured(event: Event) -> bool:
    return event.time_to_first_chunk_s is not None and (event.output_tokens or 0) >= 8


# --- Repeatable ----------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes(records: list[Record]) -> None:
    assert list(Company(START_MS).records()) == records


def test_another_start_moves_times_and_ids_alone(records: list[Record]) -> None:
    shift_ms = 86_400_123
    moved = list(Company(START_MS + shift_ms).records())
    assert [r.time_ms - shift_ms for r in moved] == [r.time_ms for r in records]
    for here, there in zip(records, moved, strict=True):
        if here.kind is not RecordKind.MALFORMED:
            assert without_time(here.raw) == without_time(there.raw)


def without_time(raw: bytes) -> dict[str, object]:
    event = json.loads(raw)
    del event["event.time"]
    # What follows the time in a UUIDv7.
    return {**event, "event.id": event["event.id"][14:]}


def test_another_seed_is_another_hour(records: list[Record]) -> None:
    other = list(Company(START_MS, seed=8).records())
    assert {r.raw for r in other}.isdisjoint(r.raw for r in records)


def test_the_script_changes_what_it_touches_and_nothing_else(
    events: list[Event], quiet_events: list[Event]
) -> None:
    quiet = {e.event_id: e for e in quiet_events}
    changed = [e for e in events if quiet[e.event_id] != e]
    assert all(12 < minute(e) < 46 for e in changed)
    # A rescued request was on its way to the provider that failed.
    asked = [msgspec.structs.replace(e, provider=e.fallback_from or e.provider) for e in changed]
    touched = [any(is_touched(e, i) for i in SCRIPT) for e in changed]
    assert all(t or is_touched(e, OUTAGE) for t, e in zip(touched, asked, strict=True))
    assert len(changed) > 1_500


# --- Ratings -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ratings() -> list[Record]:
    return list(Company(START_MS).ratings())


def test_ratings_are_the_same_again(ratings: list[Record]) -> None:
    assert list(Company(START_MS).ratings()) == ratings
    times = [r.time_ms for r in ratings]
    assert times == sorted(times)
    assert times[-1] < START_MS + HOUR_MS
    assert len({r.raw for r in ratings}) == len(ratings) > 600


def test_every_rating_is_accepted_and_comes_after_its_request(
    ratings: list[Record], records: list[Record], events: list[Event]
) -> None:
    sent = {e.event_id: e for e in events}
    times = [r.time_ms for r in records if r.kind is RecordKind.EVENT]
    finished = {e.event_id: time_ms for e, time_ms in zip(events, times, strict=True)}
    for record in ratings:
        received = decode_feedback(record.raw, record.time_ms, DEFAULT_LIMITS)
        assert isinstance(received, ReceivedFeedback)
        assert received.time_ms == record.time_ms
        event = sent[received.feedback.event_id or ""]
        assert event.error_type is None
        assert received.feedback.tenant == event.tenant
        assert record.time_ms > finished[event.event_id]


def test_users_notice_what_declines(ratings: list[Record], events: list[Event]) -> None:
    sent = {e.event_id: e for e in events}
    shown: dict[bool, list[bool]] = {True: [], False: []}
    for record in ratings:
        said = json.loads(record.raw)
        new = sent[said["event.id"]].prompt_version == SCRIPT[0].labels["prompt_version"]
        shown[new].append(said["gen_ai.evaluation.score.value"] == 0)
    shares = {new: sum(down) / len(down) for new, down in shown.items()}
    assert shares[False] < 0.12
    assert shares[True] > 2 * shares[False]


# --- Valid ---------------------------------------------------------------------------------------


def test_the_books(records: list[Record]) -> None:
    kinds = Counter(r.kind for r in records)
    assert kinds == {"event": len(load_trace()), "malformed": MALFORMED, "duplicate": DUPLICATES}
    assert (len(load_trace()), MALFORMED, DUPLICATES) == (28_185, 40, 60)


def test_every_event_is_accepted(records: list[Record]) -> None:
    for record in records:
        if record.kind is not RecordKind.MALFORMED:
            received = decode_event(record.raw, record.time_ms)
            assert isinstance(received, Received)
            assert received.attributes == {}
            if record.kind is RecordKind.EVENT:
                assert received.time_ms == record.time_ms


def test_every_malformed_record_is_refused_for_one_of_many_reasons(records: list[Record]) -> None:
    refused = [decode_event(r.raw, r.time_ms) for r in records if r.kind is RecordKind.MALFORMED]
    assert all(isinstance(r, Rejected) for r in refused)
    assert len({r.reason for r in refused if isinstance(r, Rejected)}) == 5


@pytest.mark.parametrize("index", range(len(MALFORMATIONS)))
def test_each_malformation_breaks_any_event(index: int, plan: Plan) -> None:
    for i in range(0, len(plan), 997):
        raw = MALFORMATIONS[index](build_event(plan, i, START_MS))
        assert isinstance(decode_event(raw, START_MS), Rejected)


def test_records_come_in_the_order_of_their_time(records: list[Record]) -> None:
    times = [r.time_ms for r in records]
    assert times == sorted(times)


def test_the_hour_holds_everything(records: list[Record]) -> None:
    company = Company(START_MS)
    assert company.start_ms < records[0].time_ms
    assert records[-1].time_ms < company.end_ms == START_MS + HOUR_MS


def test_ids_are_unique_and_of_version_7(events: list[Event]) -> None:
    ids = [uuid.UUID(e.event_id) for e in events]
    assert len(set(ids)) == len(events)
    assert {(i.version, i.variant) for i in ids} == {(7, uuid.RFC_4122)}


def test_a_duplicate_is_an_event_sent_again_a_little_later(records: list[Record]) -> None:
    sent: dict[bytes, int] = {}
    for record in records:
        if record.kind is RecordKind.EVENT:
            sent[record.raw] = record.time_ms
        elif record.kind is RecordKind.DUPLICATE:
            assert 0 < record.time_ms - sent[record.raw] <= 30_000


def test_numbers_agree_with_each_other(events: list[Event]) -> None:
    for e in events:
        assert (e.cache_read_tokens or 0) <= (e.input_tokens or 0)
        assert (e.reasoning_tokens or 0) <= (e.output_tokens or 0)
        assert (e.time_to_first_chunk_s or 0) <= (e.duration_s or 0)
        assert (e.attempts == 2) == (e.fallback_from is not None)
        if e.error_type is not None or e.cache == "hit":
            assert e.output_tokens is None


# --- True to the trace ---------------------------------------------------------------------------


def test_arrivals_are_those_of_the_trace(events: list[Event]) -> None:
    arrivals = sorted(arrival_ms(e) - START_MS for e in events)
    assert arrivals == load_trace().arrival_ms.tolist()


def test_an_event_ends_its_duration_after_it_arrived(events: list[Event]) -> None:
    for event in events:
        took_s = (event.event_time.timestamp() * 1000 - arrival_ms(event)) / 1000
        waited_s = took_s - event.duration_s
        if event.fallback_from is None:
            assert abs(waited_s) < 0.002
        else:
            assert 0 < waited_s < 32


def test_tokens_are_those_of_the_trace(events: list[Event]) -> None:
    trace = load_trace()
    columns = (trace.arrival_ms + START_MS, trace.input_tokens, trace.output_tokens, trace.is_code)
    requests = Counter(zip(*(c.tolist() for c in columns), strict=True))
    answered = [
        (arrival_ms(e), e.input_tokens, e.output_tokens, e.route == "code-review")
        for e in events
        if e.output_tokens is not None and not is_refused(e)
    ]
    assert len(answered) > 25_000
    assert not Counter(answered) - requests


def test_the_trace_is_packed_as_it_was_published(tmp_path: Path) -> None:
    head = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    (conv, code, packed) = (tmp_path / n for n in ("conv.csv.gz", "code.csv.gz", "trace.npz"))
    conv.write_bytes(
        gzip.compress(
            (
                head + "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109"
            ).encode()
        )
    )
    code.write_bytes(gzip.compress((head + "2023-11-16 18:15:47.0000000,4808,10").encode()))
    pack_trace(conv, code, packed)
    with np.load(packed) as columns:
        assert columns["gap_ms"].tolist() == [46_680, 320, 3_995]
        assert columns["input_tokens"].tolist() == [374, 4_808, 396]
        assert columns["output_tokens"].tolist() == [44, 10, 109]
        assert np.unpackbits(columns["is_code"], count=3).tolist() == [0, 1, 0]


# --- Believable ----------------------------------------------------------------------------------


def test_shares_of_tenants_and_providers(events: list[Event]) -> None:
    tenants = Counter(e.tenant for e in events)
    for tenant in cast.TENANTS:
        assert stats.binomtest(tenants[tenant.name], len(events), tenant.share).pvalue > LEVEL
    assert set(Counter(e.provider for e in events)) == {"openai", "anthropic", "vllm"}
    assert len({e.route for e in events}) == 5
    assert len({e.request_model for e in events}) == 6
    assert all((e.response_model is None) == (e.error_type is not None) for e in events)


def test_the_language_is_the_tenants(events: list[Event]) -> None:
    languages = {t.name: t.language for t in cast.TENANTS}
    for event in events:
        japanese = any("\u3040" <= c <= "\u30ff" for c in event.prompt_text or "")
        assert japanese == (languages[str(event.tenant)] == "ja") or event.route == "code-review"


def test_texts_vary(events: list[Event]) -> None:
    prompts = Counter(e.prompt_text for e in events)
    answers = Counter(e.response_text for e in events if len(e.response_text or "") > 120)
    assert len(prompts) > 8_000
    assert max(answers.values()) < 20


def test_every_slot_is_filled(events: list[Event]) -> None:
    # Curly braces stand in no text but in templates.
    assert not any("{" in f"{e.prompt_text}{e.response_text}" for e in events)


def test_every_refusal_reads_as_one() -> None:
    wording = load_wording()
    for language, refusals in wording.refusals.items():
        assert len(refusals) >= 8
        for route in wording.routes.values():
            for text in refusals:
                refusal = text.format(subject=route[language].subject)
                assert classify_text(refusal) is Refusal.FULL, refusal


def test_what_is_planned_is_what_can_be_seen(plan: Plan) -> None:
    for i in range(0, len(plan), 7):
        event = _decode(msgspec.json.encode(build_event(plan, i, START_MS)))
        outcome = Outcome(int(plan.outcome[i]))
        assert is_refused(event) == (outcome is Outcome.REFUSED)
        assert is_truncated(event) == (outcome is Outcome.TRUNCATED)
        assert (event.error_type is not None) == (outcome is Outcome.FAILED)
        assert (event.cache == "hit") == (outcome is Outcome.CACHED)


def test_refusals_are_told_in_three_ways(quiet_events: list[Event]) -> None:
    ways = Counter(
        decide_refusal(e.refusal, e.finish_reasons, e.response_text)[1].value
        for e in quiet_events
        if is_refused(e)
    )
    assert set(ways) == {"provider", "finish_reason", "text"}
    assert min(ways.values()) > 20


# --- What is scripted ----------------------------------------------------------------------------


def assert_rate(count: int, total: int, rate: float) -> None:
    """The count is one that a rate of `rate` brings about now and then."""
    assert stats.binomtest(count, total, rate).pvalue > LEVEL, (count, total, rate)


def split(events: list[Event], incident: ScriptedIncident) -> tuple[list[Event], list[Event]]:
    """The incident's traffic: while it lasts, and the rest of the hour."""
    traffic = [e for e in events if all(getattr(e, k) == v for k, v in incident.where.items())]
    return (
        [e for e in traffic if is_touched(e, incident)],
        [e for e in traffic if not is_touched(e, incident)],
    )


def test_the_new_template_declines(events: list[Event]) -> None:
    assert isinstance(ROLLOUT.effect, PromptRollout)
    inside, outside = split(events, ROLLOUT)
    assert {e.prompt_version for e in inside} == {"v7"}
    assert {e.prompt_version for e in outside} == {"v6"}
    asked = [e for e in inside if e.cache == "miss" and e.error_type is None]
    assert_rate(sum(map(is_refused, asked)), len(asked), ROLLOUT.effect.refusal_rate)
    assert 0.30 < sum(map(is_refused, inside)) / len(inside) < 0.40
    asked = [e for e in outside if e.cache == "miss" and e.error_type is None]
    assert_rate(sum(map(is_refused, asked)), len(asked), cast.REFUSAL_RATE)


def test_the_failing_provider_fails(events: list[Event]) -> None:
    assert isinstance(OUTAGE.effect, Outage)
    inside, outside = split(events, OUTAGE)
    for part, rate in ((inside, OUTAGE.effect.failure_rate), (outside, cast.FAILURE_RATE)):
        asked = [e for e in part if e.cache == "miss"]
        # What was rescued is reported by the provider that answered.
        left = rate * (1 - cast.RESCUED_SHARE)
        failed = sum(e.error_type is not None for e in asked)
        assert_rate(failed, len(asked), left / (left + 1 - rate))
    failed = [e for e in inside if e.error_type]
    assert 0.30 < len(failed) / len(inside) < 0.40
    assert {e.error_type for e in failed} == {"server_error", "timeout"}
    assert {e.region for e in failed} == set(cast.REGIONS)


def test_some_of_the_failures_are_rescued_by_another_provider(events: list[Event]) -> None:
    during = [e for e in events if OUTAGE.starts * 60 <= minute(e) < OUTAGE.ends * 60]
    rescued = [e for e in during if e.fallback_from == "openai"]
    failed = [e for e in during if e.provider == "openai" and e.error_type]
    assert_rate(len(rescued), len(rescued) + len(failed), cast.RESCUED_SHARE)
    assert "openai" not in {e.provider for e in rescued}
    assert all(e.error_type is None for e in rescued)


def test_the_slow_region_is_slow(events: list[Event]) -> None:
    assert isinstance(SLOWDOWN.effect, Slowdown)
    inside, outside = split(events, SLOWDOWN)
    for model in ("claude-sonnet-4-5", "claude-haiku-4-5"):
        times = [
            np.log([token_s(e) for e in part if e.request_model == model and is_measured(e)])
            for part in (inside, outside)
        ]
        assert min(map(len, times)) > 100
        factor = np.exp(np.mean(times[0]) - np.mean(times[1]))
        assert factor == pytest.approx(SLOWDOWN.effect.token_time_factor, rel=0.1)
        chunks = [
            [e.time_to_first_chunk_s for e in part if e.request_model == model and is_measured(e)]
            for part in (inside, outside)
        ]
        assert stats.ks_2samp(*chunks).pvalue > LEVEL


@pytest.mark.parametrize("incident", SCRIPT, ids=lambda i: i.family.value)
def test_an_incident_has_traffic_enough_to_be_found(
    events: list[Event], incident: ScriptedIncident
) -> None:
    inside, outside = split(events, incident)
    before = [e for e in outside if minute(e) < incident.starts * 60]
    assert len(inside) >= 300
    assert len(before) >= 1_000
    assert incident.ends < 0.8


def test_every_monitor_has_learned_before_its_incident(events: list[Event]) -> None:
    learn_events = 300
    for incident in SCRIPT:
        before = [e for e in events if minute(e) < incident.starts * 60]
        for grouping in DEFAULT_GROUPINGS:
            seen = Counter(tuple(getattr(e, d.value) for d in grouping) for e in before)
            touched = {
                tuple(getattr(e, d.value) for d in grouping)
                for e in events
                if is_touched(e, incident) and e.prompt_version != "v7" and not e.error_type
            }
            thin = {values: seen[values] for values in touched if seen[values] < learn_events}
            assert not thin, (incident.name, thin)


def test_the_script_is_in_order_and_every_family_is_in_it() -> None:
    assert [i.family for i in SCRIPT] == [Family.REFUSAL, Family.ERROR, Family.LATENCY]
    assert all(a.ends < b.starts for a, b in pairwise(SCRIPT))


def test_an_incident_can_be_put_anywhere_and_only_where_traffic_is_known() -> None:
    at_noon = msgspec.structs.replace(OUTAGE, where={"request_model": "qwen3-32b"})
    plan = plan_hour(load_trace(), (at_noon,), 1)
    failed = plan.outcome == Outcome.FAILED
    assert failed[plan.model == 5].mean() > 4 * failed[plan.model == 0].mean()
    with pytest.raises(ValueError, match="weather"):
        plan_hour(load_trace(), (msgspec.structs.replace(OUTAGE, where={"weather": "wet"}),), 1)


# --- Quiet otherwise -----------------------------------------------------------------------------


def ten_minutes(events: list[Event], property_of: object) -> list[tuple[int, int]]:
    """(events with the property, without it) for each ten minutes."""
    counts = [[0, 0] for _ in range(6)]
    for e in events:
        counts[int(minute(e) // 10)][0 if property_of(e) else 1] += 1  # type: ignore[operator]
    return [(a, b) for a, b in counts]


PROPERTIES = {
    "error": lambda e: e.error_type is not None,
    "refusal": is_refused,
    "truncation": is_truncated,
    "fallback": lambda e: e.fallback_from is not None,
    "brightcart": lambda e: e.tenant == "brightcart",
    "eu-west": lambda e: e.region == "eu-west",
}


@pytest.mark.parametrize("name", PROPERTIES)
def test_rates_are_constant(name: str, quiet_events: list[Event]) -> None:
    table = ten_minutes(quiet_events, PROPERTIES[name])
    assert stats.chi2_contingency(table).pvalue > LEVEL, table


@pytest.mark.parametrize("route", [r.name for r in cast.ROUTES])
def test_a_routes_models_and_cache_are_constant(route: str, quiet_events: list[Event]) -> None:
    events = [e for e in quiet_events if e.route == route]
    for model in {e.request_model for e in events}:
        table = ten_minutes(events, lambda e, m=model: e.request_model == m)
        assert stats.chi2_contingency(table).pvalue > LEVEL, (model, table)
    assert stats.chi2_contingency(ten_minutes(events, lambda e: e.cache == "hit")).pvalue > LEVEL


@pytest.mark.parametrize("model", [m.name for m in cast.MODELS])
def test_a_models_speed_is_constant(model: str, quiet_events: list[Event]) -> None:
    events = [e for e in quiet_events if e.request_model == model and is_measured(e)]
    slow = np.quantile([token_s(e) for e in events], 0.9)
    table = ten_minutes(events, lambda e: token_s(e) > slow)
    assert stats.chi2_contingency(table).pvalue > LEVEL, table


def test_a_change_of_rate_would_be_seen(events: list[Event]) -> None:
    """The tests above can fail: on the scripted hour they do."""
    for name in ("error", "refusal", "fallback"):
        table = ten_minutes(events, PROPERTIES[name])
        assert stats.chi2_contingency(table).pvalue < LEVEL
