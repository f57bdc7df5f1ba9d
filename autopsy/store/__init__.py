"""The store: where captures are kept that nobody gave a folder for."""
