"""What the commands of `autopsy fleet` do, in order, where that takes more than the fleet itself."""
