"""Detectors: pure mathematics over arrays. No Kafka, no clock, no environment, no logging."""
