"""The demo: an hour of a simulated company's gateway traffic, played in a minute."""
