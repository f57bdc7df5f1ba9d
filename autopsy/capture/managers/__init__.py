"""Who runs the VM: Proxmox VE, libvirt, or nobody."""
