"""Sends sealed bundles to a place that others read: never before the seal, never in the way of a capture."""
