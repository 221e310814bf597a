"""Attention over the paged KV cache: one interface, a backend for each kind of device."""
