"""Signs of a VM that need knowledge of their own: the timers of its limits, the devices below its files."""
