"""Leaves a process nothing but what it holds, so that it can read bytes of strangers."""
