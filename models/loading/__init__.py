"""Model files: where they come from and how they become parameters."""
