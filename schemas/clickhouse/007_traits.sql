-- What is counted of an answer besides how it ended; NULL where it is not known.
ALTER TABLE requests ADD COLUMN IF NOT EXISTS
    empty Nullable(Bool) AFTER truncated
;
ALTER TABLE requests ADD COLUMN IF NOT EXISTS
    off_prompt Nullable(Bool) COMMENT 'Less like its prompt than expected' AFTER empty
;
ALTER TABLE requests ADD COLUMN IF NOT EXISTS
    novel_prompt Nullable(Bool) COMMENT 'Unlike the prompts of the reference' AFTER off_prompt
;
ALTER TABLE requests ADD COLUMN IF NOT EXISTS
    repetitive Nullable(Bool) AFTER empty
;
ALTER TABLE requests ADD COLUMN IF NOT EXISTS
    language_mismatch Nullable(Bool) AFTER repetitive
;
ALTER TABLE requests ADD COLUMN IF NOT EXISTS
    output_chars Nullable(UInt32) COMMENT 'Of the answer, where its text came' AFTER reasoning_tokens
