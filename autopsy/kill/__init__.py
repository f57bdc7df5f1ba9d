"""The permission to kill, the kill, what it leaves, and the start after it."""
