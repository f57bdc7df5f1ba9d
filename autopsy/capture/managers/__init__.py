"""Who runs a VM: Proxmox VE, libvirt, or its own command line alone. Files are asked, never a daemon."""
