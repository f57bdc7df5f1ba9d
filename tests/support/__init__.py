"""What tests stand on: real QEMUs, stuck storage, stand-ins, stored cases."""
