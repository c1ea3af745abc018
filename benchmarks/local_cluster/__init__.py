"""Several Ray nodes on one machine: for tests and benchmarks."""
