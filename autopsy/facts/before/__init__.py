"""What was seen of the VM before its capture began."""
