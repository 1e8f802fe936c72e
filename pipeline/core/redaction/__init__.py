"""What must not be stored: personal data and secrets in a text, found and replaced."""

from pipeline.core.redaction.records import RecordPolicy, redact_record
from pipeline.core.redaction.redactor import (
    EVERY_KIND,
    Redacted,
    find,
    redact,
    redact_texts,
    replace_spans,
)
from pipeline.core.redaction.spans import Kind, Span

__all__ = [
    "EVERY_KIND",
    "Kind",
    "RecordPolicy",
    "Redacted",
    "Span",
    "find",
    "redact",
    "redact_record",
    "redact_texts",
    "replace_spans",
]
