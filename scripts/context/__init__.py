"""What bench_context.py runs in processes of their own."""
