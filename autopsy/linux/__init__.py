"""What the Linux kernel offers to any program, behind plain functions; nothing here knows of QEMU."""
