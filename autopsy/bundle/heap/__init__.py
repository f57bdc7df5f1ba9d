"""Records of what lies in QEMU's heap."""
