"""What the launcher does before it supervises: flags, environment, checks, port, run directory."""
