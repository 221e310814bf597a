"""Native CPU kernels: C++ that this machine's compiler builds, and its Python side."""
