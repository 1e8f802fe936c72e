-- How far an incident has come, when, and what kind it is.
ALTER TABLE incident_versions
    ADD COLUMN IF NOT EXISTS stage LowCardinality(String) AFTER status,
    ADD COLUMN IF NOT EXISTS symptom LowCardinality(String) AFTER family,
    ADD COLUMN IF NOT EXISTS root_cause LowCardinality(String) AFTER symptom,
    ADD COLUMN IF NOT EXISTS triaged_at Nullable(DateTime64(3, 'UTC')) AFTER opened_at,
    ADD COLUMN IF NOT EXISTS acknowledged_at Nullable(DateTime64(3, 'UTC')) AFTER triaged_at,
    ADD COLUMN IF NOT EXISTS acknowledged_by String AFTER acknowledged_at,
    ADD COLUMN IF NOT EXISTS mitigated_at Nullable(DateTime64(3, 'UTC')) AFTER acknowledged_by,
    ADD COLUMN IF NOT EXISTS detect_s Float64 COMMENT 'From the change to the detection',
    ADD COLUMN IF NOT EXISTS acknowledge_s Nullable(Float64) COMMENT 'From the detection, like the next two',
    ADD COLUMN IF NOT EXISTS mitigate_s Nullable(Float64),
    ADD COLUMN IF NOT EXISTS resolve_s Nullable(Float64),
    ADD COLUMN IF NOT EXISTS example_event_ids Array(String),
    ADD COLUMN IF NOT EXISTS alarms UInt32,
    ADD COLUMN IF NOT EXISTS merged_into String COMMENT 'The incident that this one was a part of'
;
CREATE OR REPLACE VIEW incidents AS SELECT * FROM incident_versions FINAL
;
-- Time to detect, acknowledge, mitigate and resolve, by what users notice. One page is one
-- incident: what only informed, and what was merged into another, is not counted.
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
WHERE severity != 'info' AND merged_into = ''
GROUP BY symptom
