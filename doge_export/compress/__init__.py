"""A bundle in fewer bits, and what that costs on a text."""
