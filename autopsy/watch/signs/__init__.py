"""Signs of a VM that need knowledge of their own: a limit's timers."""
