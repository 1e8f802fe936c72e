"""The pipeline: pure steps and incidents inside; Kafka, ClickHouse and HTTP at the edges."""
