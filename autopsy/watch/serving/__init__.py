"""What leaves the watch: metrics for Prometheus over HTTP and as a file, each by a process of its own."""
