-- How objectives stood, once a minute.
CREATE TABLE IF NOT EXISTS objective_standings
(
    time          DateTime('UTC') CODEC(Delta, ZSTD(1)),
    objective     LowCardinality(String),
    target        Float64,
    urgency       LowCardinality(String) COMMENT 'none, ticket or page',
    urgency_level UInt8 COMMENT '0, 1 or 2',
    good_share    Float64,
    requests      UInt64,
    budget_left   Float64 COMMENT 'Share of the error budget; below 0 it is overspent',
    burn          Map(UInt32, Float64) COMMENT 'Seconds of a window, and how many times too fast'
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(time)
ORDER BY (objective, time)
TTL time + INTERVAL {rollups_ttl_days} DAY
