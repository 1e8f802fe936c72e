-- For a time, nobody is told of what happens in a slice of traffic; the highest revision holds.
CREATE TABLE IF NOT EXISTS silences
(
    silence_id String,
    starts_at  DateTime64(3, 'UTC'),
    ends_at    DateTime64(3, 'UTC'),
    labels     Map(LowCardinality(String), String) COMMENT 'Empty for all traffic',
    families   Array(LowCardinality(String)) COMMENT 'Empty for all families',
    created_by String,
    why        String,
    revision   UInt64
)
ENGINE = ReplacingMergeTree(revision)
ORDER BY silence_id
;
ALTER TABLE incident_versions
    ADD COLUMN IF NOT EXISTS silence String COMMENT 'Why nobody is told, where that is so'
;
CREATE OR REPLACE VIEW incidents AS SELECT * FROM incident_versions FINAL
