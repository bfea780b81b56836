"""llama.cpp's own completions: /completion."""
