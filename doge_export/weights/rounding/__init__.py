"""A matrix in fewer bits: one algorithm a file."""
