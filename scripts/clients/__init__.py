"""Programs that show what each client's documentation shows; `try_clients.py` runs them."""
