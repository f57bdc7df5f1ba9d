"""Threads as the kernel has them: ahead of whom ours run, and what another process's were doing."""
