-- What users and evaluators think of answers, each with the request that it is about. A repeat
-- that slips past the workers' window collapses here, for the sorting key ends in its own id.
CREATE TABLE IF NOT EXISTS feedback
(
    feedback_time     DateTime64(3, 'UTC') COMMENT 'When it was given' CODEC(Delta, ZSTD(1)),
    feedback_id       String CODEC(ZSTD(1)),
    name              LowCardinality(String) COMMENT 'What was judged',
    score             Nullable(Float64),
    label             LowCardinality(String),
    negative          Nullable(Bool) COMMENT 'NULL when neither label nor score says',
    source            LowCardinality(String) COMMENT 'Who judged: user, evaluator, …',
    explanation       String COMMENT 'Empty unless texts of feedback are kept' CODEC(ZSTD(3)),

    about_event_id    String COMMENT 'What was named, as it was named' CODEC(ZSTD(1)),
    about_response_id String CODEC(ZSTD(1)),
    about_tenant      LowCardinality(String),

    event_id          String COMMENT 'The request; empty when it was not found in time' CODEC(ZSTD(1)),
    request_time      Nullable(DateTime64(3, 'UTC')),
    provider          LowCardinality(String),
    request_model     LowCardinality(String),
    response_model    LowCardinality(String),
    route             LowCardinality(String),
    tenant            LowCardinality(String),
    prompt_name       LowCardinality(String),
    prompt_version    LowCardinality(String),
    region            LowCardinality(String),
    guardrail         LowCardinality(String),

    user_hash         String COMMENT 'Keyed hash; empty when no key is configured',
    record_time       DateTime64(3, 'UTC') COMMENT 'When the record was written' CODEC(Delta, ZSTD(1)),
    topic             LowCardinality(String),
    epoch             LowCardinality(String),
    partition         UInt32,
    offset            Int64 CODEC(Delta, ZSTD(1)),

    INDEX offsets (partition, offset) TYPE minmax GRANULARITY 1
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(feedback_time)
ORDER BY (name, feedback_time, feedback_id)
TTL toDateTime(record_time) + INTERVAL {requests_ttl_days} DAY
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1
;
-- Requests are found by their ids, in any of the last days.
ALTER TABLE requests ADD INDEX IF NOT EXISTS event_ids event_id TYPE bloom_filter(0.001) GRANULARITY 1
;
ALTER TABLE requests ADD INDEX IF NOT EXISTS response_ids response_id TYPE bloom_filter(0.001) GRANULARITY 1
;
-- Feedback with its request, also where that came later than the workers waited for it; of one
-- source and user about one request, the last word.
CREATE OR REPLACE VIEW feedback_by_request AS
SELECT * FROM
(
    SELECT feedback_time, feedback_id, name, score, label, negative, source, explanation, user_hash,
           about_event_id, about_response_id, event_id, request_time, provider, request_model,
           response_model, route, tenant, prompt_name, prompt_version, region, guardrail
    FROM feedback FINAL
    WHERE event_id != ''
    UNION ALL
    SELECT feedback_time, feedback_id, name, score, label, negative, source, explanation, user_hash,
           about_event_id, about_response_id, found.1, if(found.1 = '', NULL, found.2), found.3,
           found.4, found.5, found.6, found.7, found.8, found.9, found.10, found.11
    FROM
    (
        SELECT unjoined.*,
               if(about_tenant IN ('', candidate.7), candidate, defaultValueOfArgumentType(candidate))
                   AS found
        FROM (SELECT * FROM feedback FINAL WHERE event_id = '') AS unjoined
        LEFT JOIN
        (
            SELECT asked,
                   argMax((event_id, event_time, provider, request_model, response_model, route,
                           tenant, prompt_name, prompt_version, region, guardrail), event_time)
                       AS candidate
            FROM
            (
                SELECT concat('e', event_id) AS asked, event_id, event_time, provider,
                       request_model, response_model, route, tenant, prompt_name, prompt_version,
                       region, guardrail
                FROM requests
                WHERE event_id IN (SELECT about_event_id FROM feedback
                                   WHERE event_id = '' AND about_event_id != '')
                UNION ALL
                SELECT concat('r', response_id), event_id, event_time, provider, request_model,
                       response_model, route, tenant, prompt_name, prompt_version, region, guardrail
                FROM requests
                WHERE response_id IN (SELECT about_response_id FROM feedback
                                      WHERE event_id = '' AND about_event_id = '')
            )
            GROUP BY asked
        ) AS late
        ON late.asked = if(unjoined.about_event_id = '', concat('r', unjoined.about_response_id),
                           concat('e', unjoined.about_event_id))
    )
)
ORDER BY feedback_time DESC, feedback_id
LIMIT 1 BY if(event_id = '', concat(about_event_id, '/', about_response_id), event_id),
    name, source, user_hash
