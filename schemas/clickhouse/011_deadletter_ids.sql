-- The event's id, of a record that was read well and that no table takes: it counts as seen.
ALTER TABLE deadletters ADD COLUMN IF NOT EXISTS
    event_id String AFTER reason
