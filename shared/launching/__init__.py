"""The launcher's own: flags, environment, checks before the start, port, and the supervisor."""
