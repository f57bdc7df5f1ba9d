"""Renders a diagnosis for people."""
