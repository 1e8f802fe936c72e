"""The built-in page: what is stored, to be looked at in a browser. It reads and never writes."""
