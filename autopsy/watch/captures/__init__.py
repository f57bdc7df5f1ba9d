"""How a capture that the watch wants runs, and how it is heard of."""
