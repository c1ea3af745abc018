"""Benchmarks of the engine in this process and of servers over HTTP."""
