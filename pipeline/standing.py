"""How far the consumer group is: what Kafka itself says, asked beside the consumer.

The consumer cannot be trusted with the question whether it stands still, and knows nothing of
other workers' partitions.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from kafka import errors as kafka_errors
from kafka.admin import KafkaAdminClient
from kafka.structs import OffsetAndMetadata, TopicPartition

from pipeline.config import KafkaSettings
from pipeline.incidents.complaints import Standing
from pipeline.topics import connect_admin, mapped_errors

#: By KIP-79, the times that stand for the first and the next offset.
_EARLIEST, _LATEST = -2, -1
#: The first who asks for a group's coordinator has Kafka make the topic that it keeps offsets in.
_COMING = (
    kafka_errors.CoordinatorNotAvailableError,
    kafka_errors.CoordinatorLoadInProgressError,
    kafka_errors.NotCoordinatorError,
)
_POLL_S = 0.25


def read_standings(
    settings: KafkaSettings, late_ms: int, quiet_ms: int, timeout_s: float = 10.0
) -> tuple[Standing, ...]:
    """Return how every partition of the topics of events and feedback stands, in order. Blocks.

    `late_ms` and `quiet_ms` are times, in milliseconds: a partition is late when an unread
    record was written before the one, and quiet when none was written since the other. Times
    are those of the records, which their producers set; topics that do not exist are left out.

    Raises:
        ConfigError: the settings cannot be used, or the broker refuses them.
        SinkUnavailable: the broker does not answer.
    """
    with connect_admin(settings, timeout_s) as admin, mapped_errors(settings):
        topics = admin.describe_topics([*settings.input_topics, *settings.feedback_topics])
        places = [
            TopicPartition(topic["name"], partition["partition_index"])
            for topic in topics
            for partition in topic["partitions"]
        ]
        if not places:
            return ()
        # First, so that what is done meanwhile counts as waiting, and never as lost.
        committed = _read_committed(admin, settings.group_id, places, timeout_s)
        begin, end, late, recent = (
            admin.list_partition_offsets(dict.fromkeys(places, at))
            for at in (_EARLIEST, _LATEST, late_ms, quiet_ms)
        )
    return tuple(
        _judge(place, committed, begin[place].offset, end[place].offset, late, recent)._replace(
            feedback=place.topic in settings.feedback_topics
        )
        for place in sorted(places)
    )


def _judge(
    place: TopicPartition,
    committed: Mapping[TopicPartition, OffsetAndMetadata],
    first: int,
    last: int,
    late: Mapping[TopicPartition, Any],
    recent: Mapping[TopicPartition, Any],
) -> Standing:
    known = committed[place].offset if place in committed else -1
    position = max(known, first)
    # The first that was not written before the time; where there is none, all that waits was.
    due = late[place].offset if late[place].offset >= 0 else last
    return Standing(
        topic=place.topic,
        partition=place.partition,
        position=position,
        end=max(last, position),
        late=position < due,
        quiet=recent[place].offset < 0,
    )


def _read_committed(
    admin: KafkaAdminClient, group_id: str, places: Sequence[TopicPartition], timeout_s: float
) -> Mapping[TopicPartition, OffsetAndMetadata]:
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            found: Mapping[TopicPartition, OffsetAndMetadata] = admin.list_group_offsets(
                {group_id: list(places)}
            )[group_id]
        except _COMING:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(_POLL_S)
        else:
            return found
