"""Files and folders: how ours are made, and how those that others may have laid are opened."""
