-- The books, looked over again and again: do the rollups add up to the stored requests?
CREATE TABLE IF NOT EXISTS reconciliations
(
    checked_at   DateTime64(3, 'UTC'),
    first_minute DateTime('UTC'),
    last_minute  DateTime('UTC'),
    compared     UInt32 COMMENT 'Sums, one for each minute and grouping',
    differing    UInt32
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(checked_at)
ORDER BY checked_at
TTL toDateTime(checked_at) + INTERVAL {rollups_ttl_days} DAY
