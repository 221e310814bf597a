"""The whole server: real processes, real sockets, the official client."""
