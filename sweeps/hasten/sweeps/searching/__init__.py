"""Which points of a space to try next."""
