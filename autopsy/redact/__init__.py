"""Makes a copy that can be shared."""
