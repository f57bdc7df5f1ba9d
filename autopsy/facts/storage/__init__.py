"""What the evidence tells of disks, their nodes, requests, limits and jobs."""
