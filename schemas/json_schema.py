"""The contracts as JSON Schemas (2020-12), for those who write records: generated, never edited.

``python -m schemas.json_schema`` rewrites ``schemas/event.schema.json`` and
``schemas/feedback.schema.json``. Every event that `schemas.codec.decode_event` takes is valid by
the one, and all feedback that `schemas.feedback.decode_feedback` takes by the other. The other
way round there are rules that a schema cannot say: how far a time may be from the time of
writing, no NUL, the size of a record and of its unknown keys, and that a count is written ``1``
and not ``1.0``.
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
from msgspec import Struct

import schemas.event
import schemas.feedback
from schemas.event import Event
from schemas.feedback import Feedback

FILE = Path(__file__).with_name("event.schema.json")

_DOCUMENTED = re.compile(r"((?:^ *#: .*\n)+) *(\w+)(?::| =)", re.MULTILINE)
_COMMENT = re.compile(r"^ *#: ", re.MULTILINE)
#: RFC 3339; a space for the T and an offset without its colon are taken too.
_TIME_PATTERN = (
    r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
    r"[Tt ]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?"
    r"([Zz]|[+-]([01][0-9]|2[0-3]):?[0-5][0-9])$"
)


class Contract(Struct, frozen=True):
    """A type that is read from the wire, and how it is told."""

    kind: type[Struct]
    module: ModuleType
    #: The key of its time, and whose time that is.
    time_key: str
    time_is: str
    name: str
    title: str
    description: str
    #: Of these groups of keys one key each has to be there.
    either: tuple[tuple[str, ...], ...] = ()


EVENT = Contract(
    Event,
    schemas.event,
    "event.time",
    "When the response ended",
    "gateway-event",
    "Gateway event",
    "One request to an LLM and its response. Keys are the OpenTelemetry GenAI attribute"
    " names wherever one exists. Unknown keys are kept as text.",
)
FEEDBACK = Contract(
    Feedback,
    schemas.feedback,
    "feedback.time",
    "When it was given",
    "feedback",
    "Feedback",
    "What somebody thought of an answer. Keys are those of OpenTelemetry's"
    " gen_ai.evaluation.result wherever one exists. Unknown keys are left out.",
    (
        ("event.id", "gen_ai.response.id"),
        ("gen_ai.evaluation.score.value", "gen_ai.evaluation.score.label"),
    ),
)


def build_schema(contract: Contract = EVENT) -> dict[str, Any]:
    """Return the schema of one record."""
    generated = msgspec.json.schema(contract.kind)["$defs"][contract.kind.__name__]
    descriptions = _read_descriptions(contract)
    properties = {
        key: _describe(_flatten(rule), descriptions.get(key))
        for key, rule in generated["properties"].items()
    }
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:kizashi:schema:{contract.name}",
        "title": contract.title,
        "description": contract.description,
        "type": "object",
        "properties": properties | {contract.time_key: _tell_time(contract.time_is)},
        "required": generated["required"],
        "additionalProperties": True,
    }
    if contract.either:
        schema["allOf"] = [
            {"anyOf": [{"required": [key]} for key in keys]} for keys in contract.either
        ]
    return schema


def render_schema(contract: Contract = EVENT) -> str:
    """Return the schema as it stands in its file."""
    schema = build_schema(contract)
    return json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _tell_time(whose: str) -> dict[str, Any]:
    return {
        "description": (
            f"{whose}: RFC 3339 with its zone, or seconds (not milliseconds)"
            " since 1970-01-01T00:00:00Z."
        ),
        "anyOf": [
            {"type": "string", "format": "date-time", "pattern": _TIME_PATTERN},
            {"type": "number", "minimum": -(10**12), "maximum": 10**12},
        ],
    }


def _read_descriptions(contract: Contract) -> dict[str, str]:
    """Key → the ``#:`` comment above its attribute, or else the one above its type.

    That of a label tells us what we may do with it, and nobody else anything.
    """
    comments = {
        name: " ".join(_COMMENT.sub("", comment).split("\n")).strip()
        for comment, name in _DOCUMENTED.findall(inspect.getsource(contract.module))
    }
    described = {}
    for field in msgspec.structs.fields(contract.kind):
        kind = contract.kind.__annotations__[field.name].removesuffix(" | None")
        names = [field.name] if kind == "Label" else [field.name, kind]
        if found := next((comments[n] for n in names if n in comments), None):
            described[field.encode_name] = found
    return described


def _flatten(rule: dict[str, Any]) -> dict[str, Any]:
    """Say "this or null" in one object, which is easier to read than `anyOf`."""
    rule = {key: value for key, value in rule.items() if key != "default"}
    match rule.get("anyOf"):
        case [only, {"type": "null"}] if "enum" in only:
            return {"enum": [*only["enum"], None]}
        case [only, {"type": "null"}]:
            return {**only, "type": [only["type"], "null"]}
    return rule


def _describe(rule: dict[str, Any], description: str | None) -> dict[str, Any]:
    return rule if description is None else rule | {"description": description}


def main() -> None:
    FILE.write_text(render_schema(), encoding="utf-8")
    feedback = FILE.with_name("feedback.schema.json")
    feedback.write_text(render_schema(FEEDBACK), encoding="utf-8")


if __name__ == "__main__":
    main()
