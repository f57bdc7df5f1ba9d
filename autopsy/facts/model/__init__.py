"""The facts as types."""
