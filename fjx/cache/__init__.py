"""KV memory: logical pages, prefix sharing."""
