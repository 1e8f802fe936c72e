"""Prices and costs: what a request cost, exact to the picodollar, at the price of its own day.

Money is an integer of picodollars (1e-12 USD). A rate of one picodollar a token
is 0.000001 USD per million tokens, finer than any published price, so a cost is
a sum of products of integers and nothing is ever rounded.

What is billed (`docs/prices.md` says it at length)::

    (input − cache_read − cache_creation) × input
    + cache_read × cached + cache_creation × cache_write
    + (output − reasoning) × output + reasoning × reasoning

`input` includes the cached tokens and `output` the reasoning tokens, as in
`schemas.event`. A cost that cannot be known is None, never 0.

Delivery guarantee: a cost depends on the event and the table alone, so a replay
with the same table gives the same cost, whatever day it is.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from pipeline.core.chunk import CodedColumn, combine_columns
from pipeline.errors import ConfigError

#: The largest rate, in picodollars per token: 1,000 USD per million tokens. A request has at most
#: 3 × `TOKENS_MAX` billed tokens (cache reads and cache writes that each claim the whole input,
#: and the output), so no cost exceeds 6.45e18, and int64 (9.22e18) cannot overflow.
RATE_MAX = 1_000_000_000
#: The bound of `schemas.event.TokenCount`.
TOKENS_MAX = 2**31 - 1
#: 2200-01-01: beyond it a date is a slip of the pen.
TIME_MS_MAX = 7_258_118_400_000
NAME_LENGTH_MAX = 256
ALIASES_MAX = 100
#: Events in one chunk; with `MEMO_MAX` it keeps a combination's number within its 19 bits.
CHUNK_MAX = 2**18
MEMO_MAX = 2**18

_TIME_BITS = 44
_TIME_LAST = 2**_TIME_BITS - 2
_NEVER = 2**62
_RATE_PATTERN = re.compile(r"(-?)([0-9]{1,12})(?:\.([0-9]{1,18}))?")

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


def parse_rate(text: object) -> int:
    """Return a price in USD per million tokens, such as ``"0.15"``, as picodollars per token.

    Raises:
        ValueError: not a plain decimal in quotes, negative, above `RATE_MAX`,
            or finer than a picodollar per token.
    """
    match = _RATE_PATTERN.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError('expected a plain decimal in quotes, such as "0.15"')
    sign, whole, fraction = match[1], match[2], (match[3] or "").rstrip("0")
    if sign:
        raise ValueError(f"{text} is negative")
    if len(fraction) > 6:
        raise ValueError(f"{text} is finer than 0.000001 USD per million tokens")
    rate = int(whole) * 1_000_000 + int(fraction.ljust(6, "0"))
    if rate > RATE_MAX:
        raise ValueError(f"{text} is above 1000 USD per million tokens")
    return rate


def format_rate(rate: int) -> str:
    """Inverse of `parse_rate`, with two decimals or as many more as it takes."""
    whole, fraction = divmod(rate, 1_000_000)
    return f"{whole}.{f'{fraction:06}'.rstrip('0').ljust(2, '0')}"


def format_usd(picodollars: int) -> str:
    """Return an amount in USD, exact, e.g. ``0.0001525``."""
    whole, fraction = divmod(abs(picodollars), 10**12)
    sign = "-" if picodollars < 0 else ""
    return f"{sign}{whole}.{f'{fraction:012}'.rstrip('0').ljust(2, '0')}"


class Rates(Struct, frozen=True, kw_only=True):
    """Picodollars per token. What is missing is billed as the plain tokens of its side.

    Raises:
        ValueError: a rate below 0 or above `RATE_MAX`.
    """

    input: int
    output: int
    #: Input read from the provider's prompt cache; missing: as `input`.
    cached: int | None = None
    #: Input written to it; missing: as `input`.
    cache_write: int | None = None
    #: Missing: as `output`.
    reasoning: int | None = None

    def __post_init__(self) -> None:
        for rate in self.filled():
            if not 0 <= rate <= RATE_MAX:
                raise ValueError(f"a rate of {rate} picodollars is not in 0..{RATE_MAX}")

    def filled(self) -> tuple[int, int, int, int, int]:
        """Return input, cached, cache_write, output, reasoning with the fallbacks applied."""
        return (
            self.input,
            self.input if self.cached is None else self.cached,
            self.input if self.cache_write is None else self.cache_write,
            self.output,
            self.output if self.reasoning is None else self.reasoning,
        )


class LongContext(Struct, frozen=True, kw_only=True):
    """Rates of the *whole* request once its input, cached tokens included, is over `above`."""

    above: int
    rates: Rates

    def __post_init__(self) -> None:
        if not 1 <= self.above <= TOKENS_MAX:
            raise ValueError(f"above is {self.above}, not in 1..{TOKENS_MAX} tokens")


class Price(Struct, frozen=True, kw_only=True):
    """What a model costs at one time."""

    rates: Rates
    long_context: LongContext | None = None

    def rates_for(self, input_tokens: int) -> Rates:
        """Return the rates of a request with this much input, cached tokens included."""
        long = self.long_context
        return long.rates if long is not None and input_tokens > long.above else self.rates


class SeriesKey(NamedTuple):
    """Entries that share it are one model's price history."""

    model: str
    provider: str | None


class PriceEntry(Struct, frozen=True, kw_only=True):
    """One line of the table: from this time on, this model costs this.

    Raises:
        ValueError: a name that is empty, too long or not printable; a time out of range.
    """

    model: str
    #: None: whoever serves the model.
    provider: str | None = None
    effective_from_ms: int
    price: Price
    #: Names of the model's history also stand for every longer name that begins with them.
    prefix: bool = False
    #: Other names of the same model, for the whole of its history.
    aliases: tuple[str, ...] = ()
    #: Where the price was published.
    source: str = ""

    def __post_init__(self) -> None:
        _check_name("model", self.model)
        if self.provider is not None:
            _check_name("provider", self.provider)
        if len(self.aliases) > ALIASES_MAX:
            raise ValueError(f"aliases: {len(self.aliases)} are over the limit of {ALIASES_MAX}")
        for alias in self.aliases:
            _check_name("aliases", alias)
        if self.source:
            _check_name("source", self.source)
        if not 0 <= self.effective_from_ms <= TIME_MS_MAX:
            raise ValueError("effective_from: not between 1970 and 2200")

    @property
    def key(self) -> SeriesKey:
        return SeriesKey(self.model, self.provider)


def _check_name(field_name: str, value: str) -> None:
    if not 1 <= len(value) <= NAME_LENGTH_MAX or not value.isprintable():
        raise ValueError(f"{field_name}: expected 1 to {NAME_LENGTH_MAX} printable characters")


class _Series(NamedTuple):
    """The history of one model: start times, rising, and the rows of the table they stand in."""

    key: SeriesKey
    starts_ms: tuple[int, ...]
    rows: tuple[int, ...]

    def row_at(self, time_ms: int) -> int | None:
        reached = bisect_right(self.starts_ms, time_ms)
        return self.rows[reached - 1] if reached else None


#: (name, provider) → whose name it is.
_Index = dict[SeriesKey, _Series]


@dataclass(frozen=True)
class PriceTable:
    """A dated price table. Two tables with the same entries are equal.

    Raises:
        ConfigError: two entries for the same model, provider and time; an alias
            or a prefix that two models of the same provider claim.
    """

    entries: tuple[PriceEntry, ...] = ()
    _models: _Index = field(init=False, repr=False, compare=False)
    _aliases: _Index = field(init=False, repr=False, compare=False)
    _prefixes: _Index = field(init=False, repr=False, compare=False)
    _prefix_lengths: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        entries = tuple(sorted(self.entries, key=_order))
        models = _gather(entries)
        aliases: _Index = {}
        prefixes: _Index = {}
        for entry in entries:
            series = models[entry.key]
            for alias in entry.aliases:
                _claim(aliases, alias, series, "alias")
        for key in sorted({e.key for e in entries if e.prefix}, key=_order_key):
            names = {key.model, *(a for e in entries if e.key == key for a in e.aliases)}
            for name in sorted(names):
                _claim(prefixes, name, models[key], "prefix")
        lengths = tuple(sorted({len(name.model) for name in prefixes}, reverse=True))
        for name, value in (
            ("entries", entries),
            ("_models", models),
            ("_aliases", aliases),
            ("_prefixes", prefixes),
            ("_prefix_lengths", lengths),
        ):
            object.__setattr__(self, name, value)

    def resolve(
        self, model: str, provider: str | None, time_ms: int, response_model: str | None = None
    ) -> Price | None:
        """Return the price in force at an event's time, or None where the table has none."""
        entry = self.find(model, provider, time_ms, response_model)
        return None if entry is None else entry.price

    def find(
        self, model: str, provider: str | None, time_ms: int, response_model: str | None = None
    ) -> PriceEntry | None:
        """Return the entry that prices a request, or None.

        `response_model` is asked before `model`, the one requested: what was
        served is what is billed. An exact name goes before a prefix, and a longer
        prefix before a shorter one; among equals the provider's own entry goes
        before the one for any provider, and a model's name before another's
        alias. The history so found gives its latest entry at or before
        `time_ms`; if all its entries are later, the next history is asked.
        """
        row = _row_at(self._chain(model, provider, response_model), time_ms)
        return None if row is None else self.entries[row]

    def timeline(
        self, model: str, provider: str | None, response_model: str | None = None
    ) -> list[tuple[int, int]]:
        """Return what `find` gives for every time, as steps (start in ms, index in `entries`)."""
        chain = list(self._chain(model, provider, response_model))
        starts_ms = sorted({start for series in chain for start in series.starts_ms})
        steps = ((start, _row_at(chain, start)) for start in starts_ms)
        return [(start, row) for start, row in steps if row is not None]

    def _chain(
        self, model: str, provider: str | None, response_model: str | None
    ) -> Iterator[_Series]:
        """The histories that could price a request, in the order in which they are asked."""
        providers = (provider, None) if provider else (None,)
        for name in (response_model, model):
            if name:
                yield from self._exact(name, providers)
                yield from self._by_prefix(name, providers)

    def _exact(self, model: str, providers: tuple[str | None, ...]) -> Iterator[_Series]:
        for provider in providers:
            for index in (self._models, self._aliases):
                if (series := index.get(SeriesKey(model, provider))) is not None:
                    yield series

    def _by_prefix(self, model: str, providers: tuple[str | None, ...]) -> Iterator[_Series]:
        for length in self._prefix_lengths:
            if length <= len(model):
                for provider in providers:
                    series = self._prefixes.get(SeriesKey(model[:length], provider))
                    if series is not None:
                        yield series


def _order_key(key: SeriesKey) -> tuple[str, str]:
    return key.model, key.provider or ""


def _order(entry: PriceEntry) -> tuple[str, str, int]:
    return *_order_key(entry.key), entry.effective_from_ms


def _gather(entries: Sequence[PriceEntry]) -> _Index:
    """Group sorted entries into histories."""
    rows: dict[SeriesKey, list[int]] = {}
    for row, entry in enumerate(entries):
        rows.setdefault(entry.key, []).append(row)
    index: _Index = {}
    for key, its_rows in rows.items():
        starts_ms = tuple(entries[row].effective_from_ms for row in its_rows)
        if len(set(starts_ms)) < len(starts_ms):
            raise ConfigError(f"{_describe(key)} has two prices with the same effective_from")
        index[key] = _Series(key, starts_ms, tuple(its_rows))
    return index


def _claim(index: _Index, name: str, series: _Series, kind: str) -> None:
    owner = index.setdefault(SeriesKey(name, series.key.provider), series)
    if owner.key != series.key:
        raise ConfigError(
            f"the {kind} {name!r} is claimed by {_describe(owner.key)}"
            f" and by {_describe(series.key)}: a name can stand for one model only"
        )


def _describe(key: SeriesKey) -> str:
    return repr(key.model) + (f" of provider {key.provider!r}" if key.provider else "")


def _row_at(chain: Iterable[_Series], time_ms: int) -> int | None:
    rows = (series.row_at(time_ms) for series in chain)
    return next((row for row in rows if row is not None), None)


class Usage(Struct, frozen=True, kw_only=True):
    """What one request used; None where the gateway did not say."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_creation_tokens: int | None = None
    reasoning_tokens: int | None = None
    #: The gateway's own cache answered.
    cache_hit: bool = False
    failed: bool = False


def cost_of(usage: Usage, price: Price | None) -> int | None:
    """Return the cost of one request in picodollars, or None where it cannot be known.

    A gateway cache hit, and an error that reports no usage, cost 0 whatever the
    model: nobody bills them. The rules are those of `Pricer.price_chunk`.
    """
    unused = usage.input_tokens is None and usage.output_tokens is None
    if usage.cache_hit or (usage.failed and unused):
        return 0
    if usage.input_tokens is None or price is None:
        return None
    read, written = usage.cache_read_tokens or 0, usage.cache_creation_tokens or 0
    output, reasoning = usage.output_tokens or 0, usage.reasoning_tokens or 0
    uncached = max(usage.input_tokens - read - written, 0)
    tokens = (uncached, read, written, max(output - reasoning, 0), reasoning)
    rates = price.rates_for(uncached + read + written).filled()
    return sum(n * rate for n, rate in zip(tokens, rates, strict=True))


@dataclass(frozen=True)
class UsageColumns:
    """The usage of a chunk, column by column, all of length n ≤ `CHUNK_MAX`.

    Token counts are int64, −1 where absent, at most `TOKENS_MAX`; times are
    milliseconds since the epoch. An empty response model or provider is the same
    as None.
    """

    request_model: CodedColumn
    provider: CodedColumn
    response_model: CodedColumn
    time_ms: IntArray
    input_tokens: IntArray
    output_tokens: IntArray
    cache_read_tokens: IntArray
    cache_creation_tokens: IntArray
    reasoning_tokens: IntArray
    cache_hit: BoolArray
    failed: BoolArray


@dataclass(frozen=True)
class Costs:
    """What a chunk cost. `picodollars` means something only where `priced` is true."""

    #: int64[n]; 0 where there is no price, so mask it with `priced` before it is stored.
    picodollars: IntArray
    #: bool[n]
    priced: BoolArray
    #: bool[n]: cached tokens above the input, or reasoning tokens above the output, so an adapter
    #: did not make them inclusive. The part that would be negative is billed as 0.
    inconsistent: BoolArray

    def values(self) -> list[int | None]:
        """Return the costs with None for those that are not known."""
        pairs = zip(self.picodollars.tolist(), self.priced.tolist(), strict=True)
        return [cost if priced else None for cost, priced in pairs]


_Combination = tuple[str, str | None, str | None]


class _Memo(dict[_Combination, int]):
    """Numbers (request model, provider, response model) in order of appearance.

    The steps of all combinations stand in one rising list, a combination's
    number above the time bits, so that one binary search prices a whole chunk.
    """

    def __init__(self, table: PriceTable) -> None:
        super().__init__()
        self._table = table
        self.starts: list[int] = []
        #: 1 + index in the table's entries; 0: no price.
        self.rows: list[int] = []

    def __missing__(self, combination: _Combination) -> int:
        number = len(self)
        steps = self._table.timeline(*combination)
        # The leading step stands for the time before the first price, and for "never".
        for tick, row in ((0, 0), *((start + 1, row + 1) for start, row in steps)):
            self.starts.append(number << _TIME_BITS | tick)
            self.rows.append(row)
        self[combination] = number
        return number


class Pricer:
    """Prices chunks against one table; mutable, for one thread.

    It remembers how names resolve. The memory holds at most `memo_max`
    combinations of names from earlier chunks besides those of the chunk in hand;
    beyond that it is emptied, which costs time and changes no cost.
    """

    def __init__(self, table: PriceTable, memo_max: int = 4_096) -> None:
        if not 0 <= memo_max <= MEMO_MAX:
            raise ValueError(f"memo_max is {memo_max}, not in 0..{MEMO_MAX}")
        self._table = table
        self._memo_max = memo_max
        self._rates, self._long_above = _tabulate(table.entries)
        self._forget()

    @property
    def table(self) -> PriceTable:
        return self._table

    @property
    def remembered(self) -> int:
        """How many combinations of names are held; for the metrics."""
        return len(self._memo)

    def price_chunk(self, columns: UsageColumns) -> Costs:
        """Return what each event of a chunk cost at its own time.

        Raises:
            ValueError: columns of different lengths, a chunk over `CHUNK_MAX`
                events, a token count over `TOKENS_MAX`.
        """
        _check_columns(columns)
        rows = self._resolve(columns)
        tokens, inconsistent = _split_tokens(columns)
        long = tokens[:3].sum(axis=0) > self._long_above[rows]
        billed = np.einsum("ij,ij->j", tokens, self._rates[:, 2 * rows + long])
        used = columns.input_tokens >= 0
        free = columns.cache_hit | (columns.failed & ~used & (columns.output_tokens < 0))
        billable = ~free & used & (rows > 0)
        return Costs(np.where(billable, billed, 0), free | billable, inconsistent)

    def _forget(self) -> None:
        self._memo = _Memo(self._table)
        self._starts = np.zeros(0, np.int64)
        self._rows = np.zeros(0, np.int64)

    def _resolve(self, columns: UsageColumns) -> IntArray:
        """Return for each event 1 + the index of its entry, or 0."""
        if len(self._memo) > self._memo_max:
            self._forget()
        names = combine_columns([columns.request_model, columns.provider, columns.response_model])
        numbers = np.array([self._memo[each] for each in names.values], np.int64)[names.codes]
        if len(self._memo.starts) != len(self._starts):
            self._starts = np.array(self._memo.starts, np.int64)
            self._rows = np.array(self._memo.rows, np.int64)
        ticks = np.clip(columns.time_ms, -1, _TIME_LAST) + 1
        found = np.searchsorted(self._starts, numbers << _TIME_BITS | ticks, side="right")
        return self._rows[found - 1]


def _tabulate(entries: Sequence[PriceEntry]) -> tuple[IntArray, IntArray]:
    """Return rates (5 × 2(m+1): each entry's, then its long-context ones) and limits (m+1).

    Entry 0 is the absence of a price.
    """
    rates = [(0,) * 5, (0,) * 5]
    long_above = [_NEVER]
    for entry in entries:
        long = entry.price.long_context
        base = entry.price.rates.filled()
        rates += [base, base if long is None else long.rates.filled()]
        long_above.append(_NEVER if long is None else long.above)
    return np.array(rates, np.int64).T.copy(), np.array(long_above, np.int64)


def _check_columns(columns: UsageColumns) -> None:
    n = len(columns.time_ms)
    if n > CHUNK_MAX:
        raise ValueError(f"a chunk of {n} events is over the limit of {CHUNK_MAX}")
    if any(_length(column) != n for column in vars(columns).values()):
        raise ValueError("the columns of a chunk have different lengths")
    for counts in _token_columns(columns):
        if n and int(counts.max()) > TOKENS_MAX:
            raise ValueError(f"a token count is over {TOKENS_MAX}")


def _length(column: CodedColumn | IntArray | BoolArray) -> int:
    return len(column.codes if isinstance(column, CodedColumn) else column)


def _token_columns(columns: UsageColumns) -> tuple[IntArray, ...]:
    return (
        columns.input_tokens,
        columns.cache_read_tokens,
        columns.cache_creation_tokens,
        columns.output_tokens,
        columns.reasoning_tokens,
    )


def _split_tokens(columns: UsageColumns) -> tuple[IntArray, BoolArray]:
    """Return the billed tokens (5 × n, in the order of `Rates.filled`), and which disagree."""
    tokens = np.maximum(np.stack(_token_columns(columns)), 0)
    tokens[0] -= tokens[1] + tokens[2]
    tokens[3] -= tokens[4]
    inconsistent = (tokens[0] < 0) | (tokens[3] < 0)
    np.maximum(tokens, 0, out=tokens)
    return tokens, inconsistent
