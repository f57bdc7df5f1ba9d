"""Tells what each thread of a core holds and waits for."""
