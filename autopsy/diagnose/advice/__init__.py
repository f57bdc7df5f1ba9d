"""What to do now, for this VM, its manager and its state."""
