"""Folders and buckets that hold bundles, and parts of the index."""
