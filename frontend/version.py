"""The server's version, as `/version`, `/` and `system_fingerprint` show it."""

VERSION = "0.1.0"
