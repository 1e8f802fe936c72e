"""Dashboards: panels defined once, in code, and made into Grafana's JSON. Reads `schemas` only."""
