"""Room 1: HTTP in and out, and the ledger of every open request."""
