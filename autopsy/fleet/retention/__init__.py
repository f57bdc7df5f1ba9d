"""Which bundles are kept, as data, and why."""
