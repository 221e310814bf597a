"""Which tokens run next, in which blocks: a pure library without torch, sockets or clock."""
