"""What happens when something fails: planted faults, deaths, and what is left behind."""
