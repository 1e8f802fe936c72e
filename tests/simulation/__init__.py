"""The delivery and the incident protocol, simulated: real code over a fake world.

`schedule` says what befalls a run, `world` what must hold at every step of it, `broker`,
`clickhouse` and `pagerduty` are what outlives a worker, `worker` is the code under test,
`process` lets it be killed between any two of its steps, and `controls` are broken protocols
that must be found out. ``python -m tests.simulation`` runs as many seeds as one likes.
"""
