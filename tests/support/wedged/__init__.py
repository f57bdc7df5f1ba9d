"""Real QEMUs brought into a wedge, and set free again."""
