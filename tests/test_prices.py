"""Price files: every bad one is named for what it is, and a good one comes back the same."""

from __future__ import annotations

import datetime as dt
import re
import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import load_config
from pipeline.core.pricing import (
    RATE_MAX,
    TIME_MS_MAX,
    TOKENS_MAX,
    LongContext,
    Price,
    PriceEntry,
    PriceTable,
    Rates,
    format_rate,
)
from pipeline.errors import ConfigError
from pipeline.prices import (
    ENTRIES_MAX,
    FILE_BYTES_MAX,
    FindingKind,
    UsageLine,
    _Row,
    builtin_table,
    check,
    config_lines,
    configured_table,
    format_time,
    install_table,
    load_table,
    merged,
    parse_table,
    render_findings,
    render_prices,
    select,
    table_to_toml,
)

DAY_MS = 86_400_000


def ms(text: str) -> int:
    return int(dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC).timestamp() * 1000)


def table(text: str) -> PriceTable:
    return parse_table(text, "prices.toml")


def rate(found: Price | None) -> str | None:
    return None if found is None else format_rate(found.rates.input)


def priced(model: str, start: str, cost: str, *lines: str) -> str:
    return "\n".join(
        (
            "[[price]]",
            f'model = "{model}"',
            f"effective_from = {start}",
            f'input = "{cost}"',
            f'output = "{cost}"',
            *lines,
            "",
        )
    )


# --- the form of a file


def test_every_key_of_an_entry_is_read():
    found = table(
        """
        [[price]]
        model = "m"
        provider = "p"
        prefix = true
        aliases = ["vendor/m"]
        effective_from = 2025-02-08T16:00:00.250+09:00
        input = "3.00"
        cached = "0.30"
        cache_write = "3.75"
        output = "15"
        reasoning = "20"
        source = "the contract"
        long_context = { above = 200_000, input = "6", output = "22.50", cached = "0.6" }
        """
    )
    rates = Rates(
        input=3_000_000,
        cached=300_000,
        cache_write=3_750_000,
        output=15_000_000,
        reasoning=20_000_000,
    )
    long = Rates(input=6_000_000, cached=600_000, output=22_500_000)
    assert found.entries == (
        PriceEntry(
            model="m",
            provider="p",
            prefix=True,
            aliases=("vendor/m",),
            effective_from_ms=ms("2025-02-08T07:00:00.250"),
            price=Price(rates=rates, long_context=LongContext(above=200_000, rates=long)),
            source="the contract",
        ),
    )


GOOD = priced("m", "2025-01-01", "1.00")

BAD_FILES = {
    "not TOML": ("[[price", "is not TOML"),
    "endless integer": ("price = " + "9" * 5_000, "is not TOML"),
    "nested too deeply": ("price = " + "[" * 5_000, "is not TOML"),
    "unknown top key": ("prices = []", "unknown key prices"),
    "single brackets": ("[price]\nmodel = 'm'", "two brackets"),
    "not a table": ("price = [1]", "price 1"),
    "unknown key": (GOOD + 'inputs = "1"', r"price 1 \(m\).*unknown field `inputs`"),
    "missing price": (GOOD.replace('output = "1.00"', ""), r"price 1 \(m\).*`output`"),
    "missing model": (GOOD.replace('model = "m"', ""), r"\(no model\).*`model`"),
    "missing date": (GOOD.replace("effective_from = 2025-01-01", ""), "`effective_from`"),
    "price as a float": (GOOD.replace('input = "1.00"', "input = 1.0"), "input: .*quotes"),
    "negative price": (GOOD.replace('output = "1.00"', 'output = "-1"'), "output: .*negative"),
    "too fine": (GOOD + 'cached = "0.0000001"', "cached: .*finer"),
    "absurd price": (GOOD + 'reasoning = "1500"', "reasoning: .*above 1000"),
    "exponent": (GOOD + 'cache_write = "1e3"', "cache_write: .*plain decimal"),
    "quoted date": (GOOD.replace("2025-01-01", '"2025-01-01"'), "effective_from: .*quotes"),
    "time without zone": (GOOD.replace("01-01", "01-01T00:00:00"), "effective_from: .*offset"),
    "too exact a time": (GOOD.replace("01-01", "01-01T00:00:00.0001Z"), "to the millisecond"),
    "before the epoch": (GOOD.replace("2025", "1969"), "effective_from: not between"),
    "far future": (GOOD.replace("2025", "2500"), "effective_from: not between"),
    "empty model": (GOOD.replace('"m"', '""'), "model: expected 1 to 256"),
    "long model": (GOOD.replace('"m"', '"' + "m" * 257 + '"'), "model: expected 1 to 256"),
    "control character": (GOOD.replace('"m"', '"m\\u0007"'), "model: expected .* printable"),
    "empty provider": (GOOD + 'provider = ""', "provider: expected 1 to 256"),
    "alias not a list": (GOOD + 'aliases = "x"', "aliases"),
    "empty alias": (GOOD + 'aliases = [""]', "aliases: expected 1 to 256"),
    "too many aliases": (GOOD + f"aliases = {[str(i) for i in range(101)]}", "aliases: 101 are"),
    "prefix not a bool": (GOOD + 'prefix = "yes"', "prefix"),
    "long without limit": (
        GOOD + 'long_context = { input = "1", output = "1" }',
        "long_context|above",
    ),
    "long with a bad limit": (
        GOOD + 'long_context = { above = 0, input = "1", output = "1" }',
        "long_context: above is 0",
    ),
    "long with a bad price": (
        GOOD + 'long_context = { above = 9, input = 1, output = "1" }',
        "long_context: input: .*quotes",
    ),
    "long with an unknown key": (
        GOOD + 'long_context = { above = 9, input = "1", output = "1", below = 1 }',
        "below",
    ),
    "duplicate": (GOOD + GOOD, "'m' has two prices"),
    "duplicate across time zones": (
        GOOD + priced("m", "2025-01-01T09:00:00+09:00", "2.00"),
        "'m' has two prices",
    ),
    "ambiguous alias": (
        priced("a", "2025-01-01", "1", 'aliases = ["x"]')
        + priced("b", "2025-01-01", "1", 'aliases = ["x"]'),
        "alias 'x' is claimed by 'a' and by 'b'",
    ),
    "overlapping prefixes": (
        priced("a", "2025-01-01", "1", 'aliases = ["b"]', "prefix = true")
        + priced("b", "2025-01-01", "1", "prefix = true"),
        "prefix 'b' is claimed by 'a' and by 'b'",
    ),
}


@pytest.mark.parametrize(("text", "complaint"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_refused_with_the_entry_and_the_key(tmp_path, text, complaint):
    file = tmp_path / "own.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=complaint) as caught:
        load_table(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("raw", [None, b"\xff\xfe", b"#" * (FILE_BYTES_MAX + 1)])
def test_a_file_that_cannot_be_read_is_refused(tmp_path, raw):
    file = tmp_path / "own.toml"
    if raw is not None:
        file.write_bytes(raw)
    with pytest.raises(ConfigError, match=r"own\.toml"):
        load_table(file)


def test_a_file_with_too_many_entries_is_refused_before_they_are_read():
    with pytest.raises(ConfigError, match="over the limit"):
        table("price = [" + "{}," * (ENTRIES_MAX + 1) + "]")


def test_the_form_in_the_documentation_is_the_form_that_is_read():
    text = (Path(__file__).parents[1] / "docs" / "prices.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    documented = merged(builtin_table(), table(example))
    assert rate(documented.resolve("meta-llama/x", "vllm", ms("2025-01-01"))) == "0.00"
    assert rate(documented.resolve("our-gpt", "azure.ai.openai", ms("2026-01-01"))) == "2.25"
    keys = {key for row in tomllib.loads(example)["price"] for key in row}
    assert keys == {field.name for field in msgspec.structs.fields(_Row)}


# --- there and back

#: What `str.isprintable` lets through: no control, format, unassigned or separating characters.
PRINTABLE = st.just(" ") | st.characters(exclude_categories=("C", "Z"))
NAME = st.text(PRINTABLE, min_size=1, max_size=12)
RATE = st.integers(0, RATE_MAX)
RATES = st.builds(
    Rates,
    input=RATE,
    output=RATE,
    cached=st.none() | RATE,
    cache_write=st.none() | RATE,
    reasoning=st.none() | RATE,
)
LONG = st.builds(LongContext, above=st.integers(1, TOKENS_MAX), rates=RATES)
ENTRY = st.builds(
    PriceEntry,
    model=NAME,
    provider=st.none() | NAME,
    effective_from_ms=st.integers(0, TIME_MS_MAX)
    | st.integers(0, TIME_MS_MAX // DAY_MS).map(lambda day: day * DAY_MS),
    price=st.builds(Price, rates=RATES, long_context=st.none() | LONG),
    source=st.just("") | NAME,
)


@settings(deadline=None, max_examples=100)
@given(st.lists(ENTRY, max_size=6, unique_by=lambda e: (e.key, e.effective_from_ms)), st.data())
def test_a_table_written_as_toml_reads_back_as_itself(entries, data):
    named = [
        PriceEntry(
            **{
                **{name: getattr(entry, name) for name in entry.__struct_fields__},
                "prefix": number == 0,
                # The index keeps aliases from colliding, which the table would refuse.
                "aliases": tuple(f"{number}/{alias}" for alias in data.draw(st.lists(NAME))),
            }
        )
        for number, entry in enumerate(entries)
    ]
    written = PriceTable(tuple(named))
    assert table(table_to_toml(written)) == written
    assert table_to_toml(PriceTable(tuple(named[::-1]))) == table_to_toml(written)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("2025-02-08T00:00:00", "2025-02-08"),
        ("2025-02-08T16:00:00", "2025-02-08T16:00:00Z"),
        ("2025-02-08T16:00:00.007", "2025-02-08T16:00:00.007Z"),
    ],
)
def test_a_time_is_written_as_short_as_it_is_exact(text, shown):
    assert format_time(ms(text)) == shown


# --- the built-in table


@pytest.mark.parametrize(
    ("model", "served", "time", "cost"),
    [
        ("gpt-4o", None, "2024-05-12T23:59:59.999", None),
        ("gpt-4o", None, "2024-05-13", "5.00"),
        ("gpt-4o", None, "2024-10-01T23:59:59.999", "5.00"),
        ("gpt-4o", None, "2024-10-02", "2.50"),
        ("gpt-4o", "gpt-4o-2024-05-13", "2025-01-01", "5.00"),
        ("o3", None, "2025-06-09", "10.00"),
        ("o3", None, "2025-06-10", "2.00"),
        ("deepseek-chat", None, "2025-09-05T15:59:59.999", "0.27"),
        ("deepseek-chat", None, "2025-09-05T16:00:00", "0.56"),
        ("anthropic/claude-sonnet-4-5", None, "2026-01-01", "3.00"),
        ("claude-sonnet-4-5", None, "2026-01-01", "3.00"),
        ("gpt-4o-audio-preview", None, "2026-01-01", None),
    ],
)
def test_the_built_in_table_prices_by_the_day(model, served, time, cost):
    assert rate(builtin_table().resolve(model, "openai", ms(time), served)) == cost


def test_every_built_in_entry_says_where_it_is_from_and_holds_for_any_provider():
    for entry in builtin_table().entries:
        assert entry.source, entry.model
        assert entry.provider is None, entry.model
        assert not entry.prefix, entry.model


def test_no_built_in_cached_price_is_above_the_price_of_input():
    for entry in builtin_table().entries:
        rates = entry.price.rates
        assert (rates.cached or 0) <= rates.input <= (rates.output or rates.input), entry.model


def test_the_built_in_table_survives_its_own_format():
    assert table(table_to_toml(builtin_table())) == builtin_table()


# --- one's own prices over it

BUILTIN = table(
    priced("m", "2024-01-01", "5.00", 'aliases = ["m-snapshot"]')
    + priced("m", "2025-01-01", "2.50")
    + priced("n", "2024-01-01", "1.00")
)


def test_own_prices_replace_the_history_from_their_first_date_and_leave_the_past():
    both = merged(BUILTIN, table(priced("m", "2024-06-01", "4.00")))
    assert rate(both.resolve("m", "p", ms("2024-05-31"))) == "5.00"
    assert rate(both.resolve("m", "p", ms("2024-06-01"))) == "4.00"
    assert rate(both.resolve("m", "p", ms("2026-01-01"))) == "4.00"
    assert rate(both.resolve("n", "p", ms("2026-01-01"))) == "1.00"


def test_own_prices_win_on_the_same_date_and_keep_the_models_aliases():
    both = merged(BUILTIN, table(priced("m", "2024-01-01", "0.00")))
    assert rate(both.resolve("m", None, ms("2026-01-01"))) == "0.00"
    assert rate(both.resolve("m-snapshot", None, ms("2026-01-01"))) == "0.00"


def test_own_prices_of_one_provider_leave_the_others_alone():
    both = merged(BUILTIN, table(priced("m", "2024-01-01", "0.00", 'provider = "vllm"')))
    assert rate(both.resolve("m", "vllm", ms("2026-01-01"))) == "0.00"
    assert rate(both.resolve("m", "openai", ms("2026-01-01"))) == "2.50"


def test_an_own_model_may_take_over_a_built_in_alias():
    both = merged(BUILTIN, table(priced("m-snapshot", "2025-06-01", "0.10")))
    assert rate(both.resolve("m-snapshot", None, ms("2025-05-31"))) == "2.50"
    assert rate(both.resolve("m-snapshot", None, ms("2025-06-01"))) == "0.10"


@pytest.mark.parametrize("alias", ["n", "m-snapshot"])
def test_an_own_alias_that_would_be_ambiguous_is_refused(alias):
    own = table(priced("contract", "2024-01-01", "0.10", f'aliases = ["{alias}"]'))
    with pytest.raises(ConfigError, match=alias):
        merged(BUILTIN, own)


def test_without_a_file_the_built_in_table_is_used(tmp_path):
    assert configured_table(None) == builtin_table()
    file = tmp_path / "own.toml"
    file.write_text(priced("llama", "2024-01-01", "0", 'provider = "vllm"'))
    assert rate(configured_table(file).resolve("llama", "vllm", ms("2026-01-01"))) == "0.00"
    assert rate(configured_table(file).resolve("gpt-4o", "openai", ms("2026-01-01"))) == "2.50"


# --- looking at it


def test_select_shows_a_history_by_any_name_or_what_holds_on_a_day():
    history = select(BUILTIN, "m-snapshot")
    assert [format_rate(entry.price.rates.input) for entry in history] == ["5.00", "2.50"]
    (only,) = select(BUILTIN, "m", ms("2024-12-31"))
    assert format_rate(only.price.rates.input) == "5.00"
    (only,) = select(BUILTIN, "m", ms("2025-01-01"))
    assert format_rate(only.price.rates.input) == "2.50"
    assert select(BUILTIN, "m", ms("2023-12-31")) == ()
    assert len(select(BUILTIN)) == 3
    assert len(select(BUILTIN, at_ms=ms("2026-01-01"))) == 2
    assert select(BUILTIN, "unheard-of") == ()


def test_select_finds_a_prefix_by_a_name_it_covers():
    own = table(priced("llama-", "2024-01-01", "0", "prefix = true"))
    assert len(select(own, "llama-3-70b")) == 1
    assert select(own, "lla") == ()


def test_findings_name_what_is_unpriced_too_early_and_old():
    usage = [
        UsageLine("m", "p", ms("2024-02-01"), 10),
        UsageLine("m", "p", ms("2027-02-01"), 7),
        UsageLine("m", "p", ms("2027-01-31"), 2),
        UsageLine("n", None, ms("2023-02-01"), 3),
        UsageLine("small", "p", ms("2025-02-01"), 1),
        UsageLine("big", "p", ms("2025-02-01"), 100),
    ]
    findings = check(BUILTIN, usage, old_after_days=365)
    assert [(f.kind, f.model, f.requests) for f in findings] == [
        (FindingKind.UNPRICED, "big", 100),
        (FindingKind.UNPRICED, "small", 1),
        (FindingKind.TOO_EARLY, "n", 3),
        (FindingKind.OLD_PRICE, "m", 9),
    ]
    old = findings[-1]
    assert (old.first_ms, old.last_ms) == (ms("2027-01-31"), ms("2027-02-01"))
    assert old.effective_from_ms == ms("2025-01-01")
    assert findings[2].effective_from_ms == ms("2024-01-01")


def test_a_price_is_old_only_after_the_days_given():
    line = UsageLine("n", None, ms("2024-01-01") + 10 * DAY_MS, 1)
    assert check(BUILTIN, [line], old_after_days=10) == []
    assert [f.kind for f in check(BUILTIN, [line], old_after_days=9.99)] == ["old_price"]


def test_prices_are_laid_out_in_columns():
    long = 'long_context = { above = 1000, input = "2", output = "3" }'
    shown = render_prices(table(priced("model", "2024-01-01", "0.125", long)).entries)
    lines = [" | ".join(re.split(r" {2,}", line)) for line in shown.splitlines()]
    assert lines == [
        "MODEL | PROVIDER | FROM | INPUT | CACHED | CACHE WRITE | OUTPUT | REASONING",
        "model | any | 2024-01-01 | 0.125 | - | - | 0.125 | -",
        " | input over 1,000 tokens | 2.00 | - | - | 3.00 | -",
    ]
    assert len({len(line) for line in shown.splitlines()}) == 1


def test_findings_are_laid_out_in_columns():
    findings = check(PriceTable(), [UsageLine("m", None, ms("2025-03-04T05:06:07"), 12_345)])
    assert render_findings(findings).splitlines() == [
        "FINDING   MODEL  PROVIDER  PRICE FROM  FIRST SEEN  LAST SEEN   REQUESTS",
        "unpriced  m      any       -           2025-03-04  2025-03-04    12,345",
    ]


def test_nothing_to_show_is_a_head_line_alone():
    assert len(render_prices(()).splitlines()) == 1
    assert len(render_findings(()).splitlines()) == 1


# --- putting a file in place


def test_an_installed_file_is_the_one_the_configuration_points_to(tmp_path):
    source = tmp_path / "mine.toml"
    source.write_text("# our contract\n" + priced("llama", "2024-01-01", "0.5"))
    copy = install_table(source, tmp_path / "data" / "deep")
    assert copy.read_bytes() == source.read_bytes()
    assert [p.name for p in copy.parent.iterdir()] == ["prices.toml"]
    settings_file = tmp_path / "kizashi.toml"
    settings_file.write_text(config_lines(copy))
    assert load_config(settings_file).prices.file == copy
    assert tomllib.loads(config_lines(copy)) == {"prices": {"file": str(copy)}}


@pytest.mark.parametrize(
    "text",
    [
        priced("m", "2024-01-01", "-1"),
        priced("contract", "2024-01-01", "1", 'aliases = ["gpt-4o"]'),
    ],
)
def test_a_bad_file_leaves_the_installed_one_untouched(tmp_path, text):
    source = tmp_path / "mine.toml"
    source.write_text(GOOD)
    copy = install_table(source, tmp_path / "data")
    source.write_text(text)
    with pytest.raises(ConfigError):
        install_table(source, tmp_path / "data")
    assert copy.read_text() == GOOD


def test_a_directory_that_cannot_be_written_is_a_configuration_error(tmp_path):
    source = tmp_path / "mine.toml"
    source.write_text(GOOD)
    (tmp_path / "data").write_text("a file in the way")
    with pytest.raises(ConfigError, match="cannot write"):
        install_table(source, tmp_path / "data")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "mine.toml"]
