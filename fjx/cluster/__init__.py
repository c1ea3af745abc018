"""One pipeline over several processes and machines, by Ray; see docs/cluster.md."""
