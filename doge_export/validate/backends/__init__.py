"""Everything that computes logits and can be compared: one backend a file."""
