"""Sees a stall when it happens: from outside, without a question to any VM and without a stop."""
