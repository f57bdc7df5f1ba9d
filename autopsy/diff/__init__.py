"""Says what changed between two captures, of one VM or of two."""
