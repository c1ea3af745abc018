"""Which granules go to which stage, and what the stages then need."""
