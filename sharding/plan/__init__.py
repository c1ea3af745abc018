"""Plans as values, and as JSON."""
