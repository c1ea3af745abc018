"""How much to draft and to verify: statistics, costs and pure policies."""
