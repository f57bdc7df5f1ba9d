"""Facts about the programs that the VM talks to, and what can be said of them."""
