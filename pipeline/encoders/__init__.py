"""Text to vector: a static encoder at wire speed, or any sentence-transformers model."""
