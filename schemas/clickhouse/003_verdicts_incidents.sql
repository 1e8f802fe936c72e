-- What the detectors said, once a minute per signal of a monitor. A replay writes the same rows again.
CREATE TABLE IF NOT EXISTS verdicts
(
    time           DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    grouping       LowCardinality(String),
    provider       LowCardinality(String),
    request_model  LowCardinality(String),
    response_model LowCardinality(String),
    route          LowCardinality(String),
    tenant         LowCardinality(String),
    prompt_name    LowCardinality(String),
    prompt_version LowCardinality(String),
    region         LowCardinality(String),
    family         LowCardinality(String),
    signal         LowCardinality(String),
    state          LowCardinality(String),
    log_evidence   Float64 COMMENT 'Natural logarithm of the e-value of the family',
    log_threshold  Float64,
    baseline_count UInt64,
    baseline_total UInt64,
    baseline_low   Float64,
    baseline_high  Float64,
    current_count  UInt64,
    current_total  UInt64,
    change_time    DateTime64(3, 'UTC'),
    written_at     DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMMDD(time)
ORDER BY (grouping, request_model, response_model, provider, route, tenant, prompt_name, prompt_version, region, signal, time)
TTL toDateTime(written_at) + INTERVAL {rollups_ttl_days} DAY
SETTINGS ttl_only_drop_parts = 1
;
CREATE TABLE IF NOT EXISTS alarms
(
    alarm_id     String,
    transition   LowCardinality(String),
    time         DateTime64(3, 'UTC'),
    grouping     LowCardinality(String),
    monitor      Map(LowCardinality(String), String),
    family       LowCardinality(String),
    signal       LowCardinality(String),
    direction    LowCardinality(String),
    e_value      Float64,
    threshold    Float64,
    change_time  DateTime64(3, 'UTC'),
    alarm        String COMMENT 'The whole alarm as JSON'
)
ENGINE = ReplacingMergeTree
ORDER BY (time, alarm_id, transition)
;
-- Every change of an incident is a row; the highest version is how it stands.
CREATE TABLE IF NOT EXISTS incident_versions
(
    incident_id String,
    version     UInt32,
    status      LowCardinality(String),
    severity    LowCardinality(String),
    family      LowCardinality(String),
    cause       Map(LowCardinality(String), String),
    share       Float64,
    opened_at   DateTime64(3, 'UTC'),
    updated_at  DateTime64(3, 'UTC'),
    resolved_at Nullable(DateTime64(3, 'UTC')),
    changed_at  DateTime64(3, 'UTC') COMMENT 'Estimated start of the change',
    summary     String,
    suggestion  String,
    incident    String COMMENT 'The whole incident as JSON'
)
ENGINE = ReplacingMergeTree(version)
ORDER BY incident_id
;
CREATE VIEW IF NOT EXISTS incidents AS SELECT * FROM incident_versions FINAL
;
-- The outbox: a notification is stored as pending before it is sent.
CREATE TABLE IF NOT EXISTS notifications
(
    incident_id  String,
    destination  LowCardinality(String),
    sequence     UInt32,
    action       LowCardinality(String),
    sent_at      Nullable(DateTime64(3, 'UTC')),
    failure      String,
    attempts     UInt32,
    revision     UInt64,
    notification String COMMENT 'The whole notification as JSON'
)
ENGINE = ReplacingMergeTree(revision)
ORDER BY (incident_id, destination, sequence)
;
-- The detectors' state, one line per partition of the signals topic, with its own position.
CREATE TABLE IF NOT EXISTS detector_snapshots
(
    topic       LowCardinality(String),
    epoch       String,
    partition   UInt32,
    position    Int64 COMMENT 'Offset of the last signal that is in the state',
    state       String CODEC(ZSTD(1)),
    written_at  DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree(position)
ORDER BY (topic, epoch, partition)
;
-- What was refused, without its bytes: those are on the dead-letter topic.
CREATE TABLE IF NOT EXISTS deadletters
(
    record_time DateTime64(3, 'UTC'),
    topic       LowCardinality(String),
    epoch       LowCardinality(String),
    partition   UInt32,
    offset      Int64,
    reason      LowCardinality(String),
    detail      String,
    bytes       UInt32,
    sha256      FixedString(32)
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(record_time)
ORDER BY (topic, epoch, partition, offset)
TTL toDateTime(record_time) + INTERVAL {requests_ttl_days} DAY
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1
