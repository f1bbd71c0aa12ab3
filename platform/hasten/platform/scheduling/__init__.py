"""``hasten schedule``: ticks by the clock, here or by somebody else's scheduler."""
