"""The event as a JSON Schema (2020-12), for those who write events: generated, never edited.

``python -m schemas.json_schema`` rewrites ``schemas/event.schema.json``. Every event that
`schemas.codec.decode_event` takes is valid by it. The other way round there are rules that a
schema cannot say: how far an event's time may be from the time of writing, no NUL, the size of
an event and of its unknown keys, and that a count is written ``1`` and not ``1.0``.
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import msgspec

import schemas.event
from schemas.event import Event

FILE = Path(__file__).with_name("event.schema.json")

_DOCUMENTED = re.compile(r"((?:^ *#: .*\n)+) *(\w+)(?::| =)", re.MULTILINE)
_COMMENT = re.compile(r"^ *#: ", re.MULTILINE)
#: RFC 3339; a space for the T and an offset without its colon are taken too.
_TIME_PATTERN = (
    r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
    r"[Tt ]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?"
    r"([Zz]|[+-]([01][0-9]|2[0-3]):?[0-5][0-9])$"
)
_TIME = {
    "description": (
        "When the response ended: RFC 3339 with its zone, or seconds (not milliseconds)"
        " since 1970-01-01T00:00:00Z."
    ),
    "anyOf": [
        {"type": "string", "format": "date-time", "pattern": _TIME_PATTERN},
        {"type": "number", "minimum": -(10**12), "maximum": 10**12},
    ],
}


def build_schema() -> dict[str, Any]:
    """Return the schema of one event."""
    generated = msgspec.json.schema(Event)["$defs"]["Event"]
    descriptions = _read_descriptions()
    properties = {
        key: _describe(_flatten(rule), descriptions.get(key))
        for key, rule in generated["properties"].items()
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:kizashi:schema:gateway-event",
        "title": "Gateway event",
        "description": (
            "One request to an LLM and its response. Keys are the OpenTelemetry GenAI attribute"
            " names wherever one exists. Unknown keys are kept as text."
        ),
        "type": "object",
        "properties": properties | {"event.time": _TIME},
        "required": generated["required"],
        "additionalProperties": True,
    }


def render_schema() -> str:
    """Return the schema as it stands in `FILE`."""
    return json.dumps(build_schema(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _read_descriptions() -> dict[str, str]:
    """Key → the ``#:`` comment above its attribute, or else the one above its type.

    That of a label tells us what we may do with it, and nobody else anything.
    """
    comments = {
        name: " ".join(_COMMENT.sub("", comment).split("\n")).strip()
        for comment, name in _DOCUMENTED.findall(inspect.getsource(schemas.event))
    }
    described = {}
    for field in msgspec.structs.fields(Event):
        kind = Event.__annotations__[field.name].removesuffix(" | None")
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


if __name__ == "__main__":
    main()
