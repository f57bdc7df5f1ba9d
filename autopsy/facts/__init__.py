"""From bytes to typed facts, each with its cite."""
