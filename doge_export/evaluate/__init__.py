"""What a bundle's language model is worth: perplexity of a text."""

from doge_export.evaluate.perplexity import Perplexity, evaluate_text
from doge_export.evaluate.text import read_sample, read_text

__all__ = ["Perplexity", "evaluate_text", "read_sample", "read_text"]
