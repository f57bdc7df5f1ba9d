"""The bundle: its schema, its files, how it is written and read."""
