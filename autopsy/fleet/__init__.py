"""Many bundles: sends them to one place, diagnoses them all, and answers questions about them."""
