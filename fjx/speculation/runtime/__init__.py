"""Speculation at work: what drafts, what is verified of it, and what came of it."""
