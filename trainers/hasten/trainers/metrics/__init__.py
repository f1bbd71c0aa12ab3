"""How good a network is, and when that is measured."""
