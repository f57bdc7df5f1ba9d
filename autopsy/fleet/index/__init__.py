"""The rows that diagnosed bundles leave, and what is asked of them."""
