"""The error tree. Whether a retry can help is a type, never a guess from a message.

::

    KizashiError
    ├── ConfigError         the configuration is wrong; names the key
    ├── Fenced              the work belongs to someone else now: drop it
    ├── RetryableError      the same call may succeed later: retry with backoff
    │   ├── SinkUnavailable     ClickHouse or a broker does not answer
    │   ├── ProcessLost         a process that works for the worker is gone
    │   └── DeliveryDeferred    a destination asks to be called again
    └── PermanentError      the same call will always fail: do not retry
        ├── RowsRefused         ClickHouse will never take these rows
        ├── PreparingFailed     a process that works for the worker came to an error
        ├── DeliveryRefused     a destination will never take this message
        └── Unfittable          these answers bear no reference
"""

from __future__ import annotations


class KizashiError(Exception):
    """Base of every error that Kizashi raises on purpose."""


class ConfigError(KizashiError):
    """The configuration cannot be used; the message names the key and what is wrong with it."""


class Fenced(KizashiError):
    """The partition belongs to another generation now: drop what was fetched of it."""


class RetryableError(KizashiError):
    """The same call may succeed later."""


class PermanentError(KizashiError):
    """The same call will always fail."""


class SinkUnavailable(RetryableError):
    """ClickHouse or the broker could not be reached, or was too busy to answer."""


class ProcessLost(RetryableError):
    """A process that prepares chunks is gone; another takes its place."""


class DeliveryDeferred(RetryableError):
    """A destination failed in passing, or asked to be called again."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RowsRefused(PermanentError):
    """ClickHouse answered that it will never take these rows."""


class PreparingFailed(PermanentError):
    """A process that prepares chunks came to an error, which it would come to again."""


class Unfittable(PermanentError):
    """Too few answers for a reference, or too much alike."""


class DeliveryRefused(PermanentError):
    """A destination answered that it will never take this message."""
