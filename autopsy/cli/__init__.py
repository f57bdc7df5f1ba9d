"""The command line: parses arguments and prints; nothing else prints."""
