"""Bundles and wedges built from documented fields; none of it was captured."""
