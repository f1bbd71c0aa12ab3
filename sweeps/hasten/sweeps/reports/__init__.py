"""What people look at: tables, plots, one self-contained page."""
