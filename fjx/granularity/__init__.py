"""Which plan of a ladder shall serve: observations, scores, a pure policy, its log."""
