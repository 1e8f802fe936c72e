-- What the workers counted, per minute and monitor. A dimension outside the grouping is empty.
-- Latencies are base-2 exponential histograms, bucket index → count, which add like counts.
CREATE TABLE IF NOT EXISTS rollup_1m
(
    minute                DateTime('UTC') CODEC(Delta, ZSTD(1)),
    grouping              LowCardinality(String),
    provider              LowCardinality(String),
    request_model         LowCardinality(String),
    response_model        LowCardinality(String),
    route                 LowCardinality(String),
    tenant                LowCardinality(String),
    prompt_name           LowCardinality(String),
    prompt_version        LowCardinality(String),
    region                LowCardinality(String),

    requests              SimpleAggregateFunction(sum, UInt64),
    errors                SimpleAggregateFunction(sum, UInt64),
    error_types           SimpleAggregateFunction(sumMap, Map(String, UInt64)),
    answered              SimpleAggregateFunction(sum, UInt64),
    refusals              SimpleAggregateFunction(sum, UInt64),
    truncations           SimpleAggregateFunction(sum, UInt64),
    cache_hits            SimpleAggregateFunction(sum, UInt64),
    fallbacks             SimpleAggregateFunction(sum, UInt64),
    input_tokens          SimpleAggregateFunction(sum, UInt64),
    output_tokens         SimpleAggregateFunction(sum, UInt64),
    cache_read_tokens     SimpleAggregateFunction(sum, UInt64),
    cache_creation_tokens SimpleAggregateFunction(sum, UInt64),
    reasoning_tokens      SimpleAggregateFunction(sum, UInt64),
    cost_usd              SimpleAggregateFunction(sum, Decimal(38, 12)),
    unpriced              SimpleAggregateFunction(sum, UInt64),

    duration_ms           SimpleAggregateFunction(sumMap, Map(Int16, UInt64)),
    first_chunk_ms        SimpleAggregateFunction(sumMap, Map(Int16, UInt64)),
    output_token_us       SimpleAggregateFunction(sumMap, Map(Int16, UInt64)),

    record_time           SimpleAggregateFunction(max, DateTime64(3, 'UTC'))
)
ENGINE = AggregatingMergeTree
PARTITION BY toYYYYMM(minute)
ORDER BY (grouping, request_model, response_model, provider, route, tenant, prompt_name, prompt_version, region, minute)
TTL toDateTime(record_time) + INTERVAL {rollups_ttl_days} DAY
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1
;
-- The value at rank ceil(q·n): the middle of its bucket, whose borders are 2^(1/32) apart,
-- so at most 1.1 % from the exact order statistic.
CREATE OR REPLACE FUNCTION histogramQuantile AS (histogram, q) ->
    if(empty(histogram), NULL,
       exp2((arraySort(mapKeys(histogram))[
                arrayFirstIndex(
                    c -> c >= greatest(1, ceil(q * arraySum(mapValues(histogram)))),
                    arrayCumSum(arraySort((v, k) -> k, mapValues(histogram), mapKeys(histogram))))
             ] + 0.5) / 32))
