"""The game of Go and its files: numpy and the standard library, no torch."""
