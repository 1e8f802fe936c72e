"""Real processes under faults: Kafka, workers and the ClickHouse engine, killed in every way."""
