"""Contracts: what travels on the topics and what stands in ClickHouse. Imports nothing of ours."""
