"""The central server, what it shows, and what leaves it."""
