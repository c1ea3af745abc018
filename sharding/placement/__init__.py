"""Which devices the stages of a model get, where devices are fragments."""
