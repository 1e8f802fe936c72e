"""The evaluation of the detectors: one part per question, one report, one set of marks."""
