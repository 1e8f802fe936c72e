-- A record of OTLP holds many spans, and so perhaps many dead letters.
ALTER TABLE deadletters ADD COLUMN IF NOT EXISTS
    item UInt32 AFTER offset,
    MODIFY ORDER BY (topic, epoch, partition, offset, item)
