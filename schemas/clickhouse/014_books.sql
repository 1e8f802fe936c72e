-- The books: of every chunk that was done, what was read and what became of it. The row comes last
-- of all that is stored of the chunk, under its token, so the books hold what was done, once.
CREATE TABLE IF NOT EXISTS chunk_books
(
    record_time  DateTime64(3, 'UTC') COMMENT 'When the last record was written' CODEC(Delta, ZSTD(1)),
    topic        LowCardinality(String),
    epoch        LowCardinality(String),
    partition    UInt32,
    first_offset Int64 CODEC(Delta, ZSTD(1)),
    last_offset  Int64 CODEC(Delta, ZSTD(1)),
    read         UInt64 COMMENT 'Events: stored + deadlettered + duplicates',
    stored       UInt64,
    deadlettered UInt64,
    duplicates   UInt64,
    skipped      UInt64 COMMENT 'Read beside these, and none of ours: spans that are no request to a model'
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(record_time)
ORDER BY (topic, epoch, partition, first_offset)
TTL toDateTime(record_time) + INTERVAL {requests_ttl_days} DAY
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1
;
-- The same for each partition, for as long as requests are kept. Offsets that no chunk holds were
-- taken by retention before they were read, or are markers of transactions.
CREATE VIEW IF NOT EXISTS partition_books AS
SELECT
    topic,
    epoch,
    partition,
    count() AS chunks,
    sum(chunk_books.read) AS read,
    sum(chunk_books.stored) AS stored,
    sum(chunk_books.deadlettered) AS deadlettered,
    sum(chunk_books.duplicates) AS duplicates,
    sum(chunk_books.skipped) AS skipped,
    max(last_offset) + 1 AS next_offset,
    max(last_offset) + 1 - min(first_offset) - sum(last_offset - first_offset + 1) AS offsets_missing,
    max(record_time) AS last_record_time
FROM chunk_books FINAL
GROUP BY topic, epoch, partition
;
ALTER TABLE reconciliations ADD COLUMN IF NOT EXISTS
    first_differing Nullable(DateTime('UTC')) COMMENT 'The first minute that differs' AFTER differing
;
-- What a user had in these minutes was erased: there, rollups hold more than requests.
CREATE TABLE IF NOT EXISTS erased_minutes
(
    minute DateTime('UTC')
)
ENGINE = ReplacingMergeTree
ORDER BY minute
;
-- Kizashi's own incidents are no time to detect of anything that users notice.
CREATE OR REPLACE VIEW incident_times AS
SELECT
    symptom,
    count() AS incidents,
    countIf(acknowledged_at IS NOT NULL) AS acknowledged,
    countIf(mitigated_at IS NOT NULL) AS mitigated,
    countIf(resolved_at IS NOT NULL) AS resolved,
    quantileExactInclusive(0.5)(detect_s) AS detect_s_p50,
    quantileExactInclusive(0.9)(detect_s) AS detect_s_p90,
    quantileExactInclusive(0.5)(acknowledge_s) AS acknowledge_s_p50,
    quantileExactInclusive(0.9)(acknowledge_s) AS acknowledge_s_p90,
    quantileExactInclusive(0.5)(mitigate_s) AS mitigate_s_p50,
    quantileExactInclusive(0.9)(mitigate_s) AS mitigate_s_p90,
    quantileExactInclusive(0.5)(resolve_s) AS resolve_s_p50,
    quantileExactInclusive(0.9)(resolve_s) AS resolve_s_p90
FROM incident_versions FINAL
WHERE severity != 'info' AND merged_into = '' AND family != 'pipeline'
GROUP BY symptom
