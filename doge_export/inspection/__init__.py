"""What is in a bundle, and what this machine can run."""
