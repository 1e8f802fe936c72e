"""An OpenAI-compatible gateway that emits Kizashi's events. `gateway.serving` has the stages."""
