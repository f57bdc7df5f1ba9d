"""Keeps the evidence safe until it is sealed."""
