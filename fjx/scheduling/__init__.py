"""Requests, and which of their tokens run in the next step, on which pages."""
