"""Costs are exact, dated, and never 0 for want of a price."""

from __future__ import annotations

from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.chunk import code_values
from pipeline.core.pricing import (
    CHUNK_MAX,
    RATE_MAX,
    TOKENS_MAX,
    Costs,
    LongContext,
    Price,
    PriceEntry,
    Pricer,
    PriceTable,
    Rates,
    Usage,
    UsageColumns,
    cost_of,
    format_rate,
    format_usd,
    parse_rate,
)
from pipeline.errors import ConfigError

DAY_MS = 86_400_000
T0 = 1_700_000_000_000


def usd(text: str) -> int:
    return parse_rate(text)


def price(input: str, output: str, **others: str) -> Price:  # noqa: A002
    rates = {key: usd(text) for key, text in others.items()}
    return Price(rates=Rates(input=usd(input), output=usd(output), **rates))


def entry(model: str, start_ms: int = T0, cost: str = "1.00", **others: object) -> PriceEntry:
    return PriceEntry(model=model, effective_from_ms=start_ms, price=price(cost, cost), **others)


def input_rate(found: Price | None) -> str | None:
    return None if found is None else format_rate(found.rates.input)


# --- rates


@pytest.mark.parametrize(
    ("text", "rate"),
    [("0.15", 150_000), ("0", 0), ("10", 10_000_000), ("0.000001", 1), ("1000", RATE_MAX)],
)
def test_a_rate_is_picodollars_per_token(text, rate):
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (0.15, "in quotes"),
        (15, "in quotes"),
        (True, "in quotes"),
        ("", "plain decimal"),
        ("1e-3", "plain decimal"),
        ("1,5", "plain decimal"),
        (" 1", "plain decimal"),
        ("١", "plain decimal"),
        ("nan", "plain decimal"),
        (".5", "plain decimal"),
        ("-0.15", "negative"),
        ("0.0000015", "finer"),
        ("1000.01", "above 1000"),
        ("999999999999", "above 1000"),
    ],
)
def test_a_rate_that_is_not_exact_or_not_plausible_is_refused(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse_rate(text)


@given(st.integers(0, RATE_MAX))
def test_a_rate_survives_being_written_and_read(rate):
    assert parse_rate(format_rate(rate)) == rate


@given(st.integers(-(2**63), 2**63 - 1))
def test_an_amount_is_written_exactly(picodollars):
    with localcontext(prec=40):
        assert Decimal(format_usd(picodollars)) * 10**12 == picodollars


@pytest.mark.parametrize("rate", [-1, RATE_MAX + 1])
def test_rates_outside_the_bound_cannot_be_made(rate):
    with pytest.raises(ValueError, match="is not in"):
        Rates(input=0, output=0, cached=rate)


# --- what is billed


def test_cached_and_reasoning_tokens_are_counted_once():
    table_price = price("3.00", "15.00", cached="0.30", cache_write="3.75", reasoning="20.00")
    usage = Usage(
        input_tokens=1_000,
        cache_read_tokens=600,
        cache_creation_tokens=100,
        output_tokens=200,
        reasoning_tokens=50,
    )
    by_hand = 300 * 3 + 600 * Decimal("0.3") + 100 * Decimal("3.75") + 150 * 15 + 50 * 20
    assert cost_of(usage, table_price) == by_hand * 10**6


def test_prices_that_are_missing_fall_back_to_those_of_plain_tokens():
    usage = Usage(
        input_tokens=10,
        cache_read_tokens=3,
        cache_creation_tokens=2,
        output_tokens=7,
        reasoning_tokens=4,
    )
    assert cost_of(usage, price("2.00", "5.00")) == (10 * 2 + 7 * 5) * 10**6


def test_an_explicit_zero_is_a_price_and_not_a_fallback():
    usage = Usage(input_tokens=10, cache_read_tokens=10, output_tokens=0)
    assert cost_of(usage, price("2.00", "5.00", cached="0")) == 0


def test_a_long_input_is_billed_at_the_long_rates_as_a_whole():
    long = LongContext(above=200_000, rates=Rates(input=usd("6"), output=usd("22.5")))
    tiered = Price(rates=Rates(input=usd("3"), output=usd("15")), long_context=long)
    at = Usage(input_tokens=200_000, cache_read_tokens=150_000, output_tokens=10)
    over = Usage(input_tokens=200_001, cache_read_tokens=150_000, output_tokens=10)
    costs = [(200_000 * 3 + 150) * 10**6, (200_001 * 6 + 225) * 10**6]
    assert [cost_of(at, tiered), cost_of(over, tiered)] == costs
    table = PriceTable((PriceEntry(model="m", effective_from_ms=T0, price=tiered),))
    chunk = columns_of([("m", None, None, T0, usage) for usage in (at, over)])
    assert Pricer(table).price_chunk(chunk).values() == costs


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        (Usage(), None),
        (Usage(output_tokens=5), None),
        (Usage(input_tokens=5), 5 * 10**6),
        (Usage(failed=True), 0),
        (Usage(failed=True, input_tokens=5), 5 * 10**6),
        (Usage(failed=True, output_tokens=5), None),
        (Usage(cache_hit=True), 0),
        (Usage(cache_hit=True, input_tokens=5, output_tokens=5), 0),
    ],
)
def test_what_is_not_billed_costs_nothing_and_what_is_not_known_is_none(usage, cost):
    assert cost_of(usage, price("1.00", "1.00")) == cost
    unknown_model = cost_of(usage, None)
    assert unknown_model == (0 if cost == 0 else None)


# --- which price


def test_a_price_holds_from_its_very_millisecond():
    table = PriceTable((entry("m", T0, "5.00"), entry("m", T0 + DAY_MS, "2.50")))
    found = [
        input_rate(table.resolve("m", None, T0 + offset))
        for offset in (-1, 0, DAY_MS - 1, DAY_MS, 10_000 * DAY_MS)
    ]
    assert found == [None, "5.00", "5.00", "2.50", "2.50"]


def test_a_later_price_does_not_change_the_cost_of_an_earlier_event():
    before = PriceTable((entry("m", T0, "5.00"),))
    after = PriceTable((*before.entries, entry("m", T0 + DAY_MS, "2.50")))
    assert before.resolve("m", "p", T0 + 1) == after.resolve("m", "p", T0 + 1)


def test_the_providers_own_price_goes_before_the_general_one_once_it_holds():
    own = entry("m", T0 + DAY_MS, "0.00", provider="vllm")
    table = PriceTable((entry("m", T0, "3.00"), own))
    assert input_rate(table.resolve("m", "vllm", T0)) == "3.00"
    assert input_rate(table.resolve("m", "vllm", T0 + DAY_MS)) == "0.00"
    assert input_rate(table.resolve("m", "azure", T0 + DAY_MS)) == "3.00"
    assert input_rate(table.resolve("m", None, T0 + DAY_MS)) == "3.00"


def test_a_price_of_one_provider_is_not_anyone_elses():
    table = PriceTable((entry("m", provider="vllm"),))
    assert table.resolve("m", "openai", T0) is None
    assert table.resolve("m", None, T0) is None


def test_the_longest_prefix_wins_and_an_exact_name_beats_every_prefix():
    table = PriceTable(
        (
            entry("gpt", cost="1.00", prefix=True),
            entry("gpt-4o", cost="2.00", prefix=True),
            entry("gpt-4o-mini", cost="3.00"),
            entry("gpt-4o-2024", cost="4.00", prefix=True, provider="openai"),
        )
    )
    prices = {
        name: input_rate(table.resolve(name, "openai", T0))
        for name in ("gp", "gpt", "gpt-5", "gpt-4o-x", "gpt-4o-mini", "gpt-4o-2024-05-13")
    }
    assert prices == {
        "gp": None,
        "gpt": "1.00",
        "gpt-5": "1.00",
        "gpt-4o-x": "2.00",
        "gpt-4o-mini": "3.00",
        "gpt-4o-2024-05-13": "4.00",
    }


def test_a_general_exact_name_beats_a_providers_prefix():
    table = PriceTable(
        (entry("m", cost="1.00", prefix=True, provider="p"), entry("m-1", cost="2.00"))
    )
    assert input_rate(table.resolve("m-1", "p", T0)) == "2.00"


def test_an_alias_stands_for_the_whole_history_of_its_model():
    table = PriceTable(
        (entry("m", T0, "5.00"), entry("m", T0 + DAY_MS, "2.50", aliases=("vendor/m",)))
    )
    assert input_rate(table.resolve("vendor/m", None, T0)) == "5.00"
    assert input_rate(table.resolve("vendor/m", None, T0 + DAY_MS)) == "2.50"


def test_a_models_own_name_goes_before_anothers_alias_once_it_has_a_price():
    table = PriceTable(
        (entry("m", T0, "5.00", aliases=("m-2",)), entry("m-2", T0 + DAY_MS, "1.00"))
    )
    assert input_rate(table.resolve("m-2", None, T0)) == "5.00"
    assert input_rate(table.resolve("m-2", None, T0 + DAY_MS)) == "1.00"


def test_the_model_that_was_served_is_billed_and_the_requested_one_only_for_want_of_it():
    table = PriceTable((entry("asked", cost="1.00"), entry("served", cost="2.00")))
    assert input_rate(table.resolve("asked", None, T0, "served")) == "2.00"
    assert input_rate(table.resolve("asked", None, T0, "unheard-of")) == "1.00"
    assert input_rate(table.resolve("asked", None, T0, "")) == "1.00"
    assert table.resolve("unheard-of", None, T0, "unheard-of") is None


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ((entry("m"), entry("m", cost="2.00")), "'m' has two prices with the same"),
        ((entry("a", aliases=("x",)), entry("b", aliases=("x",))), "alias 'x' is claimed"),
        (
            (entry("a", aliases=("x",), prefix=True), entry("x", prefix=True)),
            "prefix 'x' is claimed by 'a' and by 'x'",
        ),
    ],
)
def test_an_ambiguous_table_is_refused(entries, complaint):
    with pytest.raises(ConfigError, match=complaint):
        PriceTable(entries)


def test_two_providers_may_use_the_same_names():
    table = PriceTable(
        (
            entry("a", provider="p", aliases=("x",), cost="1.00"),
            entry("b", provider="q", aliases=("x",), cost="2.00"),
        )
    )
    assert input_rate(table.resolve("x", "p", T0)) == "1.00"
    assert input_rate(table.resolve("x", "q", T0)) == "2.00"


def test_a_table_is_the_same_whatever_the_order_of_its_entries():
    entries = (entry("b"), entry("a", T0 + 1), entry("a", T0), entry("a", provider="p"))
    assert PriceTable(entries) == PriceTable(entries[::-1])


# --- chunks

NAMES = ("m", "m-1", "m-1-x", "alias", "other", "unheard-of")
PROVIDERS = (None, "", "p", "q")
TIMES = st.integers(T0 - 5, T0 + 5) | st.sampled_from((-(2**63), -1, 0, 2**63 - 1))
TOKENS = st.none() | st.integers(0, 40) | st.integers(0, TOKENS_MAX) | st.just(TOKENS_MAX)
RATE = st.integers(0, 30) | st.just(RATE_MAX)
RATES = st.builds(
    Rates,
    input=RATE,
    output=RATE,
    cached=st.none() | RATE,
    cache_write=st.none() | RATE,
    reasoning=st.none() | RATE,
)
LONG = st.builds(LongContext, above=st.integers(1, 40), rates=RATES)
ENTRIES = st.builds(
    PriceEntry,
    model=st.sampled_from(NAMES[:3]),
    provider=st.sampled_from((None, "p")),
    effective_from_ms=st.just(0) | st.integers(T0 - 4, T0 + 4),
    price=st.builds(Price, rates=RATES, long_context=st.none() | LONG),
    prefix=st.booleans(),
)
USAGES = st.builds(
    Usage,
    input_tokens=TOKENS,
    output_tokens=TOKENS,
    cache_read_tokens=TOKENS,
    cache_creation_tokens=TOKENS,
    reasoning_tokens=TOKENS,
    cache_hit=st.booleans(),
    failed=st.booleans(),
)
EVENTS = st.tuples(
    st.sampled_from(NAMES),
    st.sampled_from((None, "", *NAMES)),
    st.sampled_from(PROVIDERS),
    TIMES,
    USAGES,
)
TABLES = st.lists(ENTRIES, max_size=8, unique_by=lambda e: (e.key, e.effective_from_ms)).map(
    lambda entries: PriceTable((*entries, entry("other", T0, "0.15", aliases=("alias",))))
)


def columns_of(events) -> UsageColumns:
    def tokens(name: str):
        counts = [getattr(usage, name) for *_, usage in events]
        return np.array([-1 if n is None else n for n in counts], np.int64)

    return UsageColumns(
        request_model=code_values([event[0] for event in events]),
        response_model=code_values([event[1] for event in events]),
        provider=code_values([event[2] for event in events]),
        time_ms=np.array([event[3] for event in events], np.int64),
        input_tokens=tokens("input_tokens"),
        output_tokens=tokens("output_tokens"),
        cache_read_tokens=tokens("cache_read_tokens"),
        cache_creation_tokens=tokens("cache_creation_tokens"),
        reasoning_tokens=tokens("reasoning_tokens"),
        cache_hit=np.array([usage.cache_hit for *_, usage in events], np.bool_),
        failed=np.array([usage.failed for *_, usage in events], np.bool_),
    )


def decimal_cost(usage: Usage, found: Price | None) -> Decimal | None:
    """The bill as a person works it out: USD, per million tokens, in decimals."""
    no_usage = usage.input_tokens is None and usage.output_tokens is None
    if usage.cache_hit or (usage.failed and no_usage):
        return Decimal(0)
    if found is None or usage.input_tokens is None:
        return None
    cached, written = usage.cache_read_tokens or 0, usage.cache_creation_tokens or 0
    reasoning = usage.reasoning_tokens or 0
    plain = max(usage.input_tokens - cached - written, 0)
    said = max((usage.output_tokens or 0) - reasoning, 0)
    rates = found.rates
    if found.long_context and plain + cached + written > found.long_context.above:
        rates = found.long_context.rates
    r = {key: getattr(rates, key) for key in rates.__struct_fields__}
    per_million = {key: None if v is None else Decimal(format_rate(v)) for key, v in r.items()}

    def charge(count: int, key: str, fallback: str) -> Decimal:
        rate = per_million[key] if per_million[key] is not None else per_million[fallback]
        return Decimal(count) * rate / 1_000_000

    with localcontext(prec=60):
        return (
            charge(plain, "input", "input")
            + charge(cached, "cached", "input")
            + charge(written, "cache_write", "input")
            + charge(said, "output", "output")
            + charge(reasoning, "reasoning", "output")
        )


@settings(deadline=None, max_examples=300)
@given(TABLES, st.lists(EVENTS, max_size=20), st.integers(0, 3))
def test_a_chunk_costs_what_its_events_cost_to_the_last_picodollar(table, events, memo_max):
    pricer = Pricer(table, memo_max)
    split = len(events) // 2
    costs: list[int | None] = []
    for part in (events[:split], events[split:]):
        costs += pricer.price_chunk(columns_of(part)).values()
    found = [table.resolve(asked, by, at, served) for asked, served, by, at, _ in events]
    usages = [usage for *_, usage in events]
    assert costs == [cost_of(u, p) for u, p in zip(usages, found, strict=True)]
    with localcontext(prec=60):
        bill = [decimal_cost(u, p) for u, p in zip(usages, found, strict=True)]
        assert [None if c is None else Decimal(c) / 10**12 for c in costs] == bill


def price_one(table: PriceTable, usage: Usage, model: str = "m", time_ms: int = T0) -> Costs:
    return Pricer(table).price_chunk(columns_of([(model, None, None, time_ms, usage)]))


def test_the_dearest_request_there_can_be_does_not_overflow():
    dear = Rates(input=RATE_MAX, output=RATE_MAX)
    table = PriceTable((PriceEntry(model="m", effective_from_ms=0, price=Price(rates=dear)),))
    usage = Usage(
        input_tokens=TOKENS_MAX,
        cache_read_tokens=TOKENS_MAX,
        cache_creation_tokens=TOKENS_MAX,
        output_tokens=TOKENS_MAX,
        reasoning_tokens=TOKENS_MAX,
    )
    costs = price_one(table, usage)
    assert costs.values() == [3 * TOKENS_MAX * RATE_MAX]
    assert costs.values()[0] < 2**63


def test_an_unknown_model_is_unpriced_and_not_free():
    costs = price_one(PriceTable(), Usage(input_tokens=10, output_tokens=10))
    assert costs.values() == [None]
    assert not costs.priced[0]


@pytest.mark.parametrize(
    ("usage", "inconsistent"),
    [
        (Usage(input_tokens=10, cache_read_tokens=6, cache_creation_tokens=4), False),
        (Usage(input_tokens=10, cache_read_tokens=7, cache_creation_tokens=4), True),
        (Usage(input_tokens=10, output_tokens=5, reasoning_tokens=5), False),
        (Usage(input_tokens=10, output_tokens=5, reasoning_tokens=6), True),
        (Usage(input_tokens=10), False),
        (Usage(), False),
    ],
)
def test_usage_that_is_not_inclusive_is_flagged_and_never_billed_below_zero(usage, inconsistent):
    costs = price_one(PriceTable((entry("m"),)), usage)
    assert costs.inconsistent.tolist() == [inconsistent]
    assert costs.picodollars[0] >= 0


def test_an_empty_chunk_costs_nothing():
    costs = Pricer(PriceTable()).price_chunk(columns_of([]))
    assert costs.values() == []
    assert costs.picodollars.dtype == np.int64


def test_the_memory_for_names_is_bounded():
    pricer = Pricer(PriceTable((entry("m", prefix=True),)), memo_max=10)
    usage = Usage(input_tokens=1, output_tokens=1)
    for batch in range(20):
        events = [(f"m-{batch}-{i}", None, None, T0, usage) for i in range(7)]
        assert pricer.price_chunk(columns_of(events)).values() == [2 * 10**6] * 7
        assert pricer.remembered <= 10 + 7


@pytest.mark.parametrize("memo_max", [-1, 2**18 + 1])
def test_a_memory_without_bound_cannot_be_had(memo_max):
    with pytest.raises(ValueError, match="memo_max"):
        Pricer(PriceTable(), memo_max)


def test_columns_that_do_not_fit_are_refused():
    good = columns_of([("m", None, None, T0, Usage(input_tokens=1))])
    pricer = Pricer(PriceTable())
    for change, complaint in (
        ({"provider": []}, "different lengths"),
        ({"input_tokens": np.array([TOKENS_MAX + 1])}, "token count"),
        ({"time_ms": np.zeros(CHUNK_MAX + 1, np.int64)}, "over the limit"),
    ):
        with pytest.raises(ValueError, match=complaint):
            pricer.price_chunk(UsageColumns(**{**vars(good), **change}))
