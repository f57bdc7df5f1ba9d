"""Linux by itself: /proc, ptrace, sockets, mounts, children; knows no QEMU."""
