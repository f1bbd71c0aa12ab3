"""What to try, how to search, and who won."""
