"""What is folded into other weights before a matrix is rounded: one algorithm a file."""
