"""What a cluster would do: the engine's own policies through a cost model instead of devices."""

try:
    import simpy as _simpy  # noqa: F401
except ImportError as error:
    raise ImportError("fjx.sim needs SimPy, which is not installed: pip install simpy") from error
