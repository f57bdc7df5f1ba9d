"""Turns evidence that others took into the records that a capture leaves."""
