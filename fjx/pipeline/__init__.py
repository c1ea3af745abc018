"""Stages as programs: the granules of a plan, compiled ahead of time and chained."""
