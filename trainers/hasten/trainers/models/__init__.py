"""Networks: their specs, and how they are built."""
