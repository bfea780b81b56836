"""A checkpoint -> a bundle."""
