"""What a cluster would do: the engine's own policies through a cost model instead of devices."""
