"""Going from one plan to another while requests are in flight."""
