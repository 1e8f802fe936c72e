"""The measured programs: each runs alone, in its own environment, and prints one line of JSON."""
