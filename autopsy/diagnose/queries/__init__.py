"""Answers questions about the facts that several signatures ask."""
