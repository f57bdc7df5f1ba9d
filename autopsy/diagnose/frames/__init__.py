"""Mechanisms that the frames of imported evidence decide alone: nothing else of it may be there."""
