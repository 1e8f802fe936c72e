-- A sample of whole answers as numbers, from which references are fitted: for every request
-- model at most so many of a chunk. The texts are not in it, but a vector tells something of one.
CREATE TABLE IF NOT EXISTS answer_samples
(
    event_time    DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    event_id      String CODEC(ZSTD(1)),
    request_model LowCardinality(String),
    embedding     LowCardinality(String) COMMENT 'Which encoder made the vectors',
    prompt        Array(Float32) CODEC(ZSTD(1)),
    answer        Array(Float32) CODEC(ZSTD(1)) COMMENT 'Style features, then likeness to the prompt',
    record_time   DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMMDD(event_time)
ORDER BY (embedding, request_model, event_time, event_id)
TTL toDateTime(record_time) + INTERVAL {samples_ttl_days} DAY
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1
;
-- What answers of a request model look like while nothing changes. The newest of a model counts.
CREATE TABLE IF NOT EXISTS references
(
    request_model LowCardinality(String),
    embedding     LowCardinality(String),
    fitted_at     DateTime64(3, 'UTC'),
    answers       UInt32,
    first_time    DateTime64(3, 'UTC'),
    last_time     DateTime64(3, 'UTC'),
    reference     String COMMENT 'MessagePack, base64' CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree
ORDER BY (embedding, request_model, fitted_at)
;
-- What sets an answer apart from what its prompt lets one expect, against the reference of its time.
ALTER TABLE requests ADD COLUMN IF NOT EXISTS
    fingerprint Array(Float32) CODEC(ZSTD(1)) AFTER time_per_token_s
