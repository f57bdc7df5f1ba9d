"""What touches the VM. Nothing here says what the evidence means."""
