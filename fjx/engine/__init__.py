"""Requests, the scheduler, the batch, the token rule and the step."""
