"""llama.cpp's own server tests against another server: what stands between them and it. `run_llama_suite.py`
starts it; nothing of llama.cpp is here."""
