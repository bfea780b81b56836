"""What Doge is measured against: one peer a module, each served by a process of its own.

A module has `open(model, threads, ...)` and `tokens(prompt, new_tokens)`, and ends in `peers.base.serve`.
"""
