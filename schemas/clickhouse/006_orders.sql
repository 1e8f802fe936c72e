-- What people have ordered of references: which version is pinned, and which changes were planned.
-- A pin goes by `request_model` and `version`; a reset by `slice`, and by `request_model` too
-- where the slice is all of a model's traffic.
CREATE TABLE IF NOT EXISTS reference_orders
(
    order_id      String,
    ordered_at    DateTime64(3, 'UTC'),
    action        LowCardinality(String) COMMENT 'pin, unpin or reset',
    request_model LowCardinality(String),
    version       DateTime64(3, 'UTC') COMMENT 'When the reference that is pinned was fitted',
    slice         Map(LowCardinality(String), String),
    note          String
)
ENGINE = ReplacingMergeTree
ORDER BY (ordered_at, order_id, action, request_model, toString(slice))
;
-- What a planned change did: the rate that was normal for a monitor before, and since.
CREATE TABLE IF NOT EXISTS planned_effects
(
    order_id     String,
    time         DateTime64(3, 'UTC'),
    grouping     LowCardinality(String),
    monitor      Map(LowCardinality(String), String),
    family       LowCardinality(String),
    signal       LowCardinality(String),
    before_count UInt64,
    before_total UInt64,
    after_count  UInt64,
    after_total  UInt64
)
ENGINE = ReplacingMergeTree
ORDER BY (order_id, grouping, toString(monitor), signal)
