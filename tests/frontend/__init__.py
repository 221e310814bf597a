"""Room 1: pure encoders and ledger, the engine client, and HTTP over a loopback socket."""
