"""All outgoing I/O: ClickHouse, PagerDuty, webhooks."""
