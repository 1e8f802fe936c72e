"""Commands: what a person, or a system on a person's behalf, wants done with an incident.

They travel on the alarms topic, whose one partition orders them with the alarms.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import msgspec
from msgspec import Struct

from schemas.alarm import Alarm, decode_alarm

#: Longer notes and names are cut at the door.
TEXT_CHARS = 4_000
NAME_CHARS = 200


class Verb(StrEnum):
    ACKNOWLEDGE = "acknowledge"
    UNACKNOWLEDGE = "unacknowledge"
    MITIGATE = "mitigate"
    RESOLVE = "resolve"
    REOPEN = "reopen"
    NOTE = "note"
    #: Only remember what the outside system calls the incident.
    LINK = "link"


class Command(Struct, frozen=True, kw_only=True):
    """One thing to be done with one incident.

    `command_id` is the same for every repeat of it: a repeat changes nothing.
    """

    kind: Literal["command"] = "command"
    command_id: str
    verb: Verb
    #: Empty where only the outside system's own id is known.
    incident_id: str = ""
    #: When it was given.
    time_ms: int
    by: str
    text: str = ""
    #: The outside system it came through, and what that calls the incident.
    via: str = ""
    external_id: str = ""


class _Head(Struct):
    kind: str = "alarm"


_head_decoder = msgspec.json.Decoder(_Head)
_decoder = msgspec.json.Decoder(Command)


def encode_command(command: Command) -> bytes:
    """Return the command as JSON, the form it has on `llm.alarms`."""
    return msgspec.json.encode(command)


def decode_alarm_or_command(raw: bytes) -> Alarm | Command:
    """Return what a record of `llm.alarms` holds; raises msgspec.MsgspecError for anything else."""
    if _head_decoder.decode(raw).kind == "command":
        return _decoder.decode(raw)
    return decode_alarm(raw)
