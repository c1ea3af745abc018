"""From a mesh, a machine and a model to a plan."""
