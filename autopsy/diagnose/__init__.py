"""Pure: facts in, verdict out."""
