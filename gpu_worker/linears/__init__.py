"""Linear layers computed by other means than a plain weight: repacked, or of small numbers."""
