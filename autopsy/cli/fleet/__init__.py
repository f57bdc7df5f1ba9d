"""The commands of `autopsy fleet`."""
