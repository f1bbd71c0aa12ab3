"""What runs when, what is stopped, and what is known of it afterwards; nothing here knows Ray."""
