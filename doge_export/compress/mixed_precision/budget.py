"""What a searched mixture of types may take, or may lose."""

__all__ = ["SEARCHED", "Budget"]

from dataclasses import dataclass

from doge_export.compress.mixed_precision.probe import Effect
from doge_export.core.errors import DogeExportError

#: The scheme's name; with a method behind it, "searched-search", that rounds.
SEARCHED = "searched"


@dataclass(frozen=True)
class Budget:
    """What a searched mixture may take or lose: one of `max_bytes`, of model.onnx and its weights, and on the
    text searched by of `max_kl`, and `min_top1`, which the top-1 agreement less its standard error reaches.

    Raises:
        DogeExportError: not one of the three is given, or `min_top1` is no share.
    """

    max_bytes: int | None = None
    max_kl: float | None = None
    min_top1: float | None = None

    def __post_init__(self) -> None:
        if sum(each is not None for each in (self.max_bytes, self.max_kl, self.min_top1)) != 1:
            raise DogeExportError(
                f"--scheme {SEARCHED} searches within one budget.",
                "Give one of --max-bytes, --max-kl and --min-top1.",
            )
        if self.min_top1 is not None and not 0 < self.min_top1 <= 1:
            raise DogeExportError(f"--min-top1 {self.min_top1:g} is no share.", "0.99 is 99 %.")

    def score(self, effect: Effect) -> float:
        """The measure of a loss that is bounded; more is better.

        Raises:
            DogeExportError: the text gives no standard error.
        """
        if self.min_top1 is None:
            return -effect.kl_divergence
        if effect.top1_error is None:
            raise DogeExportError(
                "The text has one window to search by, which gives no standard error.",
                "Give a longer --text.",
            )
        return effect.top1_agreement - effect.top1_error

    def holds(self, effect: Effect) -> bool:
        """Whether a mixture of this effect loses no more than it may."""
        if self.min_top1 is not None:
            return self.score(effect) >= self.min_top1
        assert self.max_kl is not None
        return effect.kl_divergence <= self.max_kl
