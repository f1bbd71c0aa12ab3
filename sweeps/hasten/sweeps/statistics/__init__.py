"""Who won, by how much, and what cannot be told: statistics of plain numbers."""
