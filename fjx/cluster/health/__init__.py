"""Who of a cluster is lost, slow or cut off."""
