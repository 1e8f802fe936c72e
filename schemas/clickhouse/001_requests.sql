-- One row per accepted event. A repeat that slips past the workers' window collapses
-- here, for the sorting key ends in the event's own id and time.
CREATE TABLE IF NOT EXISTS requests
(
    event_time            DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    event_id              String CODEC(ZSTD(1)),

    provider              LowCardinality(String),
    request_model         LowCardinality(String),
    response_model        LowCardinality(String),
    route                 LowCardinality(String),
    tenant                LowCardinality(String),
    prompt_name           LowCardinality(String),
    prompt_version        LowCardinality(String),
    region                LowCardinality(String),

    operation             LowCardinality(String),
    response_id           String CODEC(ZSTD(1)),
    finish_reasons        Array(LowCardinality(String)),
    stream                Nullable(Bool),
    temperature           Nullable(Float32),
    max_tokens            Nullable(UInt32),

    error_type            LowCardinality(String) COMMENT 'Empty when it succeeded',
    refused               Bool,
    partly_refused        Bool,
    refusal_source        LowCardinality(String) COMMENT 'provider, finish_reason, text or unknown',
    truncated             Bool,
    cache                 LowCardinality(String),
    fallback_from         LowCardinality(String),
    attempts              Nullable(UInt16),
    guardrail             LowCardinality(String),

    input_tokens          Nullable(UInt32) COMMENT 'Inclusive of cached tokens',
    output_tokens         Nullable(UInt32) COMMENT 'Inclusive of reasoning tokens',
    cache_read_tokens     Nullable(UInt32),
    cache_creation_tokens Nullable(UInt32),
    reasoning_tokens      Nullable(UInt32),
    cost_usd              Nullable(Decimal(18, 12)) COMMENT 'NULL when the price is unknown',

    duration_s            Nullable(Float64),
    time_to_first_chunk_s Nullable(Float64),
    time_per_token_s      Nullable(Float64) COMMENT 'Generation time per output token',

    user_hash             String COMMENT 'Keyed hash; empty when no key is configured',
    attributes            Map(LowCardinality(String), String),

    record_time           DateTime64(3, 'UTC') COMMENT 'When the record was written' CODEC(Delta, ZSTD(1)),
    topic                 LowCardinality(String),
    epoch                 LowCardinality(String),
    partition             UInt32,
    offset                Int64 CODEC(Delta, ZSTD(1)),

    INDEX offsets (partition, offset) TYPE minmax GRANULARITY 1
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMMDD(event_time)
ORDER BY (request_model, tenant, event_time, event_id)
TTL toDateTime(record_time) + INTERVAL {requests_ttl_days} DAY
-- Merges are the engine's largest cost. Column by column they take two thirds of the time that
-- they take row by row, and with a higher base fewer of them rewrite a row.
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1,
    vertical_merge_algorithm_min_rows_to_activate = 1, merge_selector_base = 8
;
-- Prompts and answers: off by default, apart from the rest, and gone sooner.
CREATE TABLE IF NOT EXISTS request_texts
(
    event_time    DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    event_id      String CODEC(ZSTD(1)),
    prompt_text   String CODEC(ZSTD(3)),
    response_text String CODEC(ZSTD(3)),
    record_time   DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMMDD(event_time)
ORDER BY (event_time, event_id)
TTL toDateTime(record_time) + INTERVAL {texts_ttl_days} DAY
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1
