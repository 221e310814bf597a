"""Tests, room by room, and of the server as a whole."""
