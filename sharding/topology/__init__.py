"""The machine as values: devices, links, and what is free."""
