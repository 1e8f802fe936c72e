"""The benchmark over a real broker: ours and what one would otherwise write, on the same topic."""
