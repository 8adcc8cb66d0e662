"""How a transformer knows where a token stands."""
