"""Cases: what is asked, and what has to be true of the answer. TOML or JSON lines."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any

import msgspec
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from pydantic import Field, ValidationError, field_validator, model_validator

from pipeline.errors import ConfigError
from pipeline.section import Section

#: Cases of one file.
CASES_MAX = 1_000


class Expectation(Section):
    """What has to be true of an answer: all that is given here."""

    #: Each has to be in it, whatever its case.
    keywords: tuple[str, ...] = ()
    #: None of these may be.
    forbidden: tuple[str, ...] = ()
    #: Somewhere in it (Python's regular expressions).
    pattern: str | None = None
    #: It is JSON, and fits this schema (draft 2020-12).
    json_schema: dict[str, Any] | None = None
    #: Its cosine with this answer, by our encoder, is at least `similarity`.
    similar_to: str | None = None
    similarity: Annotated[float, Field(gt=0, le=1)] = 0.7
    #: Whether it has to refuse, or must not.
    refuses: bool | None = None

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from None
        return value

    @field_validator("json_schema")
    @classmethod
    def _check_schema(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        try:
            Draft202012Validator.check_schema(value or {})
        except SchemaError as error:
            raise ValueError(f"no JSON Schema: {error.message[:200]}") from None
        return value

    @model_validator(mode="after")
    def _check_any(self) -> Expectation:
        if self == Expectation.model_construct():
            raise ValueError("expects nothing, and so could not fail")
        return self


class Message(Section):
    role: str
    content: str


class Case(Section):
    """A question, asked `samples` times: `required` of the answers have to be as expected."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    #: The last user turn; `messages` stand before it.
    input: Annotated[str, Field(min_length=1)]
    messages: tuple[Message, ...] = ()
    #: Instead of the one that is configured.
    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    samples: Annotated[int, Field(ge=1, le=1_000)] = 5
    required: Annotated[float, Field(gt=0, le=1)] = 0.8
    expect: Expectation


class _File(Section):
    cases: Annotated[tuple[Case, ...], Field(min_length=1, max_length=CASES_MAX)]

    @field_validator("cases")
    @classmethod
    def _check_names(cls, value: tuple[Case, ...]) -> tuple[Case, ...]:
        if len({case.name for case in value}) < len(value):
            raise ValueError("a name stands there twice")
        return value


def load_cases(path: Path) -> tuple[Case, ...]:
    """Read the cases of a file: ``[[cases]]`` in TOML, or one object a line (``.jsonl``).

    Raises:
        ConfigError: it cannot be read, or a case is impossible.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix in (".jsonl", ".ndjson"):
            held = [msgspec.json.decode(line) for line in text.splitlines() if line.strip()]
            return _File(cases=tuple(held)).cases
        return _File(**tomllib.loads(text)).cases
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.DecodeError) as error:
        raise ConfigError(f"cannot read the cases {path}: {error}") from None
    except ValidationError as error:
        problems = (
            f"{'.'.join(map(str, p['loc']))}: {p['msg']}"
            for p in error.errors(include_url=False, include_input=False)
        )
        raise ConfigError(f"{path}: {'; '.join(problems)}") from None
