"""Price files: the built-in table, one's own over it, and what `kizashi prices` shows and checks.

The form of a file is described in `docs/prices.md`. Everything here runs at
start-up or from the command line, never per event.

Delivery guarantee of `install_table`: after it returns, the whole file is there
and survives a crash; if it raises, the earlier file is untouched.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from pipeline.core.pricing import (
    TIME_MS_MAX,
    LongContext,
    Price,
    PriceEntry,
    PriceTable,
    Rates,
    SeriesKey,
    format_rate,
    parse_rate,
)
from pipeline.errors import ConfigError
from pipeline.sinks.text import printable

FILE_BYTES_MAX = 4 * 1024 * 1024
ENTRIES_MAX = 20_000
#: Name of the file that `install_table` writes.
FILE_NAME = "prices.toml"

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_DAY_MS = 86_400_000
_RATE_KEYS = ("input", "cached", "cache_write", "output", "reasoning")

_Parsed = TypeVar("_Parsed")


class _RateRow(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The prices of a TOML table, not yet parsed."""

    input: Any
    output: Any
    cached: Any = None
    cache_write: Any = None
    reasoning: Any = None


class _LongRow(_RateRow, frozen=True, kw_only=True, forbid_unknown_fields=True):
    above: int


class _Row(_RateRow, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One ``[[price]]`` of a file."""

    model: str
    effective_from: Any
    provider: str | None = None
    prefix: bool = False
    aliases: tuple[str, ...] = ()
    source: str = ""
    long_context: _LongRow | None = None


@cache
def builtin_table() -> PriceTable:
    """Return the list prices that come with Kizashi."""
    text = resources.files("pipeline.data").joinpath("prices.toml").read_text(encoding="utf-8")
    return parse_table(text, "the built-in price table")


def load_table(path: Path) -> PriceTable:
    """Read a price file.

    Raises:
        ConfigError: it cannot be read, or something in it is wrong; names the
            entry and the key.
    """
    return parse_table(_read(path), f"the price file {path}")


def configured_table(file: Path | None) -> PriceTable:
    """Return the table to price with: the built-in one, and over it the file of `[prices]`.

    Raises:
        ConfigError: as `load_table` and `merged`.
    """
    return builtin_table() if file is None else merged(builtin_table(), load_table(file))


def parse_table(text: str, where: str) -> PriceTable:
    """Parse the text of a price file; `where` is what error messages call it.

    Raises:
        ConfigError: something in it is wrong; names the entry and the key.
    """
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # tomllib raises a plain ValueError for an integer of thousands of digits.
        raise ConfigError(f"{where} is not TOML: {error}") from None
    if unknown := sorted(data.keys() - {"price"}):
        raise ConfigError(f"{where}: unknown key {unknown[0]}; prices stand under [[price]]")
    rows = data.get("price", [])
    if not isinstance(rows, list):
        raise ConfigError(f"{where}: price is not a list; write [[price]] with two brackets")
    if len(rows) > ENTRIES_MAX:
        raise ConfigError(f"{where}: {len(rows)} entries are over the limit of {ENTRIES_MAX}")
    entries = tuple(_parse_entry(row, number, where) for number, row in enumerate(rows, 1))
    try:
        return PriceTable(entries)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _parse_entry(data: Any, number: int, where: str) -> PriceEntry:
    name = data.get("model", "no model") if isinstance(data, dict) else "not a table"
    where = f"{where}: price {number} ({name})"
    try:
        row = msgspec.convert(data, _Row)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}") from None
    rates = _parse_rates(row, where)
    start_ms = _parse_key(_parse_time, row.effective_from, f"{where}: effective_from")
    try:
        return PriceEntry(
            model=row.model,
            provider=row.provider,
            effective_from_ms=start_ms,
            price=Price(rates=rates, long_context=_parse_long(row.long_context, where)),
            prefix=row.prefix,
            aliases=row.aliases,
            source=row.source,
        )
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def _parse_long(row: _LongRow | None, where: str) -> LongContext | None:
    if row is None:
        return None
    where = f"{where}: long_context"
    rates = _parse_rates(row, where)
    return _parse_key(lambda above: LongContext(above=above, rates=rates), row.above, where)


def _parse_rates(row: _RateRow, where: str) -> Rates:
    texts = {key: getattr(row, key) for key in _RATE_KEYS if getattr(row, key) is not None}
    return Rates(**{k: _parse_key(parse_rate, text, f"{where}: {k}") for k, text in texts.items()})


def _parse_key(parse: Callable[[Any], _Parsed], value: Any, where: str) -> _Parsed:
    try:
        return parse(value)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def _parse_time(value: object) -> int:
    """Milliseconds since the epoch of a TOML date (its midnight, UTC) or offset date-time."""
    if isinstance(value, dt.datetime):
        if value.tzinfo is None:
            raise ValueError("a time needs its offset from UTC, such as 2025-02-08T16:00:00Z")
        if value.microsecond % 1000:
            raise ValueError("a time is exact to the millisecond")
        return (value - _EPOCH) // dt.timedelta(milliseconds=1)
    if isinstance(value, dt.date):
        return (value - _EPOCH.date()).days * _DAY_MS
    raise ValueError("expected a date without quotes, such as 2025-02-08")


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
        if len(raw) > FILE_BYTES_MAX:
            raise ConfigError(f"the price file {path} is over {FILE_BYTES_MAX} bytes")
        return raw.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the price file {path}: {error}") from None


def merged(builtin: PriceTable, own: PriceTable) -> PriceTable:
    """Return `builtin` with one's own prices over it.

    From the first date of an own model and provider, only own entries count for
    it; before that date the built-in history stands, so that what was priced
    stays priced as it was. The model keeps its built-in aliases.

    Raises:
        ConfigError: an own alias is a built-in model or another one's alias.
    """
    firsts_ms: dict[SeriesKey, int] = {}
    for entry in own.entries:
        firsts_ms.setdefault(entry.key, entry.effective_from_ms)
    _refuse_hidden_aliases(builtin, own)
    kept: list[PriceEntry] = []
    replaced: list[PriceEntry] = []
    for entry in builtin.entries:
        stands = entry.effective_from_ms < firsts_ms.get(entry.key, TIME_MS_MAX + 1)
        (kept if stands else replaced).append(entry)
    return PriceTable((*kept, *_inherit_aliases(own.entries, replaced)))


def _refuse_hidden_aliases(builtin: PriceTable, own: PriceTable) -> None:
    """A model's name goes before an alias, so such an alias would silently do nothing."""
    models = {entry.key for entry in builtin.entries}
    for entry in own.entries:
        for alias in entry.aliases:
            key = SeriesKey(alias, entry.provider)
            if key in models and key != entry.key:
                raise ConfigError(
                    f"the alias {alias!r} of {entry.model!r} is a model of the built-in price"
                    " table: write an entry for that model instead"
                )


def _inherit_aliases(
    entries: Iterable[PriceEntry], replaced: Iterable[PriceEntry]
) -> Iterator[PriceEntry]:
    names: dict[SeriesKey, dict[str, None]] = {}
    for entry in replaced:
        names.setdefault(entry.key, {}).update(dict.fromkeys(entry.aliases))
    for entry in entries:
        aliases = tuple(dict.fromkeys((*entry.aliases, *names.pop(entry.key, {}))))
        yield msgspec.structs.replace(entry, aliases=aliases)


def select(
    table: PriceTable, model: str | None = None, at_ms: int | None = None
) -> tuple[PriceEntry, ...]:
    """Return the entries of the models that go by a name, and of each the one in force at a time.

    Without `model` all models are meant, and without `at_ms` their whole history.
    """
    keys = {entry.key for entry in table.entries if model is None or _names(entry, model)}
    chosen = [entry for entry in table.entries if entry.key in keys]
    if at_ms is None:
        return tuple(chosen)
    reached = (entry for entry in chosen if entry.effective_from_ms <= at_ms)
    return tuple({entry.key: entry for entry in reached}.values())


def _names(entry: PriceEntry, model: str) -> bool:
    names = (entry.model, *entry.aliases)
    return model in names or (entry.prefix and model.startswith(names))


def table_to_toml(table: PriceTable) -> str:
    """Return a table as a price file, sorted; `parse_table` gives the same table back."""
    return "\n".join(_entry_to_toml(entry) for entry in table.entries)


def _entry_to_toml(entry: PriceEntry) -> str:
    lines = ["[[price]]", f"model = {_quote(entry.model)}"]
    if entry.provider is not None:
        lines.append(f"provider = {_quote(entry.provider)}")
    if entry.prefix:
        lines.append("prefix = true")
    if entry.aliases:
        lines.append(f"aliases = [{', '.join(map(_quote, entry.aliases))}]")
    lines.append(f"effective_from = {format_time(entry.effective_from_ms)}")
    lines += _rates_to_toml(entry.price.rates)
    if (long := entry.price.long_context) is not None:
        fields = [f"above = {long.above}", *_rates_to_toml(long.rates)]
        lines.append(f"long_context = {{ {', '.join(fields)} }}")
    if entry.source:
        lines.append(f"source = {_quote(entry.source)}")
    return "\n".join(lines) + "\n"


def _rates_to_toml(rates: Rates) -> list[str]:
    values = ((key, getattr(rates, key)) for key in _RATE_KEYS)
    return [f'{key} = "{format_rate(rate)}"' for key, rate in values if rate is not None]


def _quote(text: str) -> str:
    # Names are printable, and for printable text a JSON string is a TOML string.
    return json.dumps(text, ensure_ascii=False)


def format_time(time_ms: int) -> str:
    """Return a time as TOML has it: a date where it is a midnight in UTC."""
    time = _EPOCH + dt.timedelta(milliseconds=time_ms)
    if time_ms % _DAY_MS == 0:
        return time.date().isoformat()
    precision = "milliseconds" if time_ms % 1000 else "seconds"
    return time.replace(tzinfo=None).isoformat(timespec=precision) + "Z"


class UsageLine(NamedTuple):
    """Requests of a model that were seen."""

    model: str
    provider: str | None
    time_ms: int
    requests: int


class FindingKind(StrEnum):
    """What is wrong with a price, the worst first."""

    #: The table does not know the model: its cost is NULL.
    UNPRICED = "unpriced"
    #: The requests are older than the model's first price: their cost is NULL.
    TOO_EARLY = "too_early"
    #: Priced, but by a price that has stood for long: look whether it still does.
    OLD_PRICE = "old_price"


class Finding(Struct, frozen=True, kw_only=True):
    """One thing to look at: what, for which model, and how many requests it concerns."""

    kind: FindingKind
    model: str
    provider: str | None
    requests: int
    first_ms: int
    last_ms: int
    #: Start of the price that is old, or of the first price that came too late.
    effective_from_ms: int | None = None


def check(
    table: PriceTable, usage: Iterable[UsageLine], old_after_days: float = 365.0
) -> list[Finding]:
    """Return what the table leaves to be desired for the traffic that was seen.

    A price is old when it had stood for more than `old_after_days` at the time
    of the request. The worst kind comes first, and within it what concerns most
    requests.
    """
    findings: dict[tuple[FindingKind, str, str | None], Finding] = {}
    for line in usage:
        if (finding := _judge(table, line, old_after_days)) is not None:
            key = (finding.kind, finding.model, finding.provider)
            findings[key] = _join(findings.get(key), finding)
    kinds = list(FindingKind)
    return sorted(
        findings.values(),
        key=lambda f: (kinds.index(f.kind), -f.requests, f.model, f.provider or ""),
    )


def _judge(table: PriceTable, line: UsageLine, old_after_days: float) -> Finding | None:
    entry = table.find(line.model, line.provider, line.time_ms)
    if entry is not None:
        if line.time_ms - entry.effective_from_ms <= old_after_days * _DAY_MS:
            return None
        kind, since_ms = FindingKind.OLD_PRICE, entry.effective_from_ms
    elif steps := table.timeline(line.model, line.provider):
        kind, since_ms = FindingKind.TOO_EARLY, steps[0][0]
    else:
        return _finding(FindingKind.UNPRICED, line, None)
    return _finding(kind, line, since_ms)


def _finding(kind: FindingKind, line: UsageLine, since_ms: int | None) -> Finding:
    return Finding(
        kind=kind,
        model=line.model,
        provider=line.provider,
        requests=line.requests,
        first_ms=line.time_ms,
        last_ms=line.time_ms,
        effective_from_ms=since_ms,
    )


def _join(earlier: Finding | None, finding: Finding) -> Finding:
    if earlier is None:
        return finding
    later = max(earlier, finding, key=lambda f: f.last_ms)
    return msgspec.structs.replace(
        later,
        requests=earlier.requests + finding.requests,
        first_ms=min(earlier.first_ms, finding.first_ms),
    )


def render_prices(entries: Sequence[PriceEntry]) -> str:
    """Return prices as a table of plain text, USD per million tokens, one line per entry."""
    head = ("MODEL", "PROVIDER", "FROM", "INPUT", "CACHED", "CACHE WRITE", "OUTPUT", "REASONING")
    rows = [row for entry in entries for row in _price_rows(entry)]
    return _render((head, *rows), left=3)


def _price_rows(entry: PriceEntry) -> Iterator[tuple[str, ...]]:
    name = entry.model + ("*" if entry.prefix else "")
    start = format_time(entry.effective_from_ms)
    yield (name, entry.provider or "any", start, *_rate_cells(entry.price.rates))
    if (long := entry.price.long_context) is not None:
        yield (f"  input over {long.above:,} tokens", "", "", *_rate_cells(long.rates))


def _rate_cells(rates: Rates) -> Iterator[str]:
    for key in _RATE_KEYS:
        rate = getattr(rates, key)
        yield "-" if rate is None else format_rate(rate)


def render_findings(findings: Sequence[Finding]) -> str:
    """Return findings as a table of plain text, one line each."""
    head = ("FINDING", "MODEL", "PROVIDER", "PRICE FROM", "FIRST SEEN", "LAST SEEN", "REQUESTS")
    rows = [
        (
            finding.kind.replace("_", " "),
            finding.model,
            finding.provider or "any",
            "-" if finding.effective_from_ms is None else format_time(finding.effective_from_ms),
            _format_day(finding.first_ms),
            _format_day(finding.last_ms),
            f"{finding.requests:,}",
        )
        for finding in findings
    ]
    return _render((head, *rows), left=6)


def _format_day(time_ms: int) -> str:
    return format_time(time_ms // _DAY_MS * _DAY_MS)


def _render(rows: Sequence[tuple[str, ...]], left: int) -> str:
    """Lay out rows in columns: the first `left` flush left, the others flush right."""
    rows = [tuple(map(printable, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
    return "\n".join(lines) + "\n"


def install_table(file: Path, target: Path) -> Path:
    """Check a price file, alone and over the built-in table, and copy it into a directory.

    Returns the path of the copy, `target` / ``prices.toml``, for `prices.file`.
    The bytes that were checked are the bytes that are written.

    Raises:
        ConfigError: the file is wrong, or the directory cannot be written.
    """
    text = _read(file)
    merged(builtin_table(), parse_table(text, f"the price file {file}"))
    copy = target / FILE_NAME
    try:
        target.mkdir(parents=True, exist_ok=True)
        _write_atomically(copy, text.encode("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot write the price file {copy}: {error}") from None
    return copy


def config_lines(path: Path) -> str:
    """Return the lines of the configuration that make the pipeline use a price file."""
    return f"[prices]\nfile = {_quote(str(path.absolute()))}\n"


def _write_atomically(path: Path, raw: bytes) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp keeps a file to its owner, but the pipeline may run as someone else.
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
