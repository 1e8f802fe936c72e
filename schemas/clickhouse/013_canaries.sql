-- Answers to questions whose answers are known.
ALTER TABLE requests ADD COLUMN IF NOT EXISTS
    canary LowCardinality(String) COMMENT 'The case; empty for a user' AFTER guardrail
;
ALTER TABLE requests ADD COLUMN IF NOT EXISTS
    canary_passed Nullable(Bool) AFTER canary
