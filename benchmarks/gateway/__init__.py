"""The gateway beside LiteLLM's proxy: same fake upstream, same machine, one process each."""
