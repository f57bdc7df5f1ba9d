"""Takes backtraces through gdb: on the frozen core, or attached where nothing can be frozen."""
