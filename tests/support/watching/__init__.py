"""What the tests of the watch stand on."""
