"""Whose VM it is: one file a platform."""
