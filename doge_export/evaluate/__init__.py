"""What a bundle's language model is worth: perplexity of a text, and tasks of lm-eval."""

from doge_export.evaluate.perplexity import Perplexity, evaluate_text
from doge_export.evaluate.task_options import TaskOptions
from doge_export.evaluate.tasks import CARD, evaluate_tasks
from doge_export.evaluate.text import read_sample, read_text

__all__ = ["CARD", "Perplexity", "TaskOptions", "evaluate_tasks", "evaluate_text", "read_sample", "read_text"]
