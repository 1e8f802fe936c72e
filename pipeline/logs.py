"""What is logged: one line for a message, however many a stranger's text would make of it.

Messages quote what callers and servers wrote: model names, ClickHouse's complaints about a
value. A line break in one would forge the next entry, an escape sequence the terminal, and
personal data would outlive what is stored. So control characters are replaced, personal data
is redacted, and the lines of a traceback are set in, as no entry is.
"""

from __future__ import annotations

import logging

from pipeline.core.redaction import redact
from pipeline.sinks.text import printable

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_MESSAGE_CHARS = 8_000
_TRACEBACK_CHARS = 40_000
_INDENT = "  | "


class LineFormatter(logging.Formatter):
    """One line for a message; those of a traceback begin with ``  | ``."""

    def __init__(self) -> None:
        super().__init__(FORMAT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record.message = printable(redact(record.message[:_MESSAGE_CHARS]).text)
        return super().formatMessage(record)

    def formatException(self, ei: logging._SysExcInfoType) -> str:  # noqa: N802
        text = redact(super().formatException(ei)[-_TRACEBACK_CHARS:]).text
        return "\n".join(_INDENT + printable(line) for line in text.split("\n"))


def log_in_lines() -> None:
    """Give every handler of the root logger our formatter."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(LineFormatter())
