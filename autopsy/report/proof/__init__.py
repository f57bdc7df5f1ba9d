"""The proofs on the first screen, each with a line out of the evidence."""
