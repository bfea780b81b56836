"""Which mathematics a checkpoint has, by evidence: its tensors, its config.json, and, where those leave a
doubt, in which of the candidates its weights are a language model."""

from doge_export.export.evidence.decide import decide_generation, weigh

__all__ = ["decide_generation", "weigh"]
