"""Finds parked coroutines, and what they wait for."""
