"""Pure steps from raw records to rows, rollups and signals: no I/O, time is a parameter."""
