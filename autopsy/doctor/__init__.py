"""What this host lets a capture do, tried on a process of our own."""
