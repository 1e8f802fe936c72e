"""Health check of the worker's container: exit 0 when the consumer group has a live member.

Kafka expels a member that stops sending heartbeats, so its word is worth more
than that of a process about itself.
"""

from __future__ import annotations

import sys

from pipeline.config import KafkaSettings, load_config
from pipeline.errors import KizashiError
from pipeline.topics import connect_admin, mapped_errors


def count_members(settings: KafkaSettings) -> int:
    """Return how many members the consumer group has; 0 while it is rebalancing or unknown.

    Raises:
        KizashiError: the broker does not answer, or refuses.
    """
    with connect_admin(settings) as admin, mapped_errors(settings):
        group = admin.describe_groups([settings.group_id])[settings.group_id]
    return len(group["members"]) if group["group_state"] == "Stable" else 0


def main() -> int:
    try:
        members = count_members(load_config().kafka)
    except KizashiError as error:
        print(error)
        return 1
    print(f"{members} in the consumer group")
    return 0 if members else 1


if __name__ == "__main__":
    sys.exit(main())
