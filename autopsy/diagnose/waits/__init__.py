"""Who waits for whom, one edge after the other, to where the waiting ends."""
