"""Canaries: questions whose answers are known, asked again and again."""
