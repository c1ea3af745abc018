"""What plans cost: seconds and bytes of their stages, and of going from one to another."""
