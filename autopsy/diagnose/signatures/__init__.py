"""One file a family of wedges."""
