"""A bundle in full precision whose weights can be exchanged, and what an exchange does to a text's logits."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from doge_export.compress.calibration.inputs import first_call
from doge_export.core.bundle import Bundle
from doge_export.core.progress import Progress, silent
from doge_export.graph.passes import expose_selection
from doge_export.graph.passes.simplify import WEIGHTS
from doge_export.validate.backends.function_bodies import plain_session
from doge_export.validate.metrics import standard_error

__all__ = ["Effect", "Probe"]

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Effect:
    """Against the full model, over all tokens: mean KL(full || changed) in nats and the share where both have
    the same best token; the shares of rows whose set of keys or of experts is another. A row of keys is a
    layer, kv head and token that sees more keys than fit; one of experts a layer and token. None where there
    is no row. `top1_error`: the standard error of the agreement, by the means of the windows; None of one.

    `typical_kl` is the square of the mean root of KL. In 8 bits a thousandth of the tokens, where a choice
    falls otherwise, has a third of the mean KL or more: which tokens these are is chance, and so is the mean.
    """

    kl_divergence: float
    typical_kl: float
    top1_agreement: float
    changed_keys: float | None
    changed_experts: float | None
    top1_error: float | None = None


class Probe:
    """`bundle`, in full precision, on function bodies, reading ids [windows, length] each from an empty
    cache. The matrices are inputs of the session that have a default: nothing is loaded twice.

    The full model's logits of all windows stay in memory, 4 * windows * length * vocab bytes. `progress` gets
    the tokens that it reads at first.
    """

    def __init__(self, bundle: Bundle, ids: npt.NDArray[np.int64], progress: Progress = silent) -> None:
        model = ir.load(bundle.model_path)
        graph = model.graph
        self._dtypes: dict[str, np.dtype[np.generic]] = {}
        for name, value in graph.initializers.items():
            if name.startswith(WEIGHTS) and value.const_value is not None:
                self._dtypes[name] = value.const_value.numpy().dtype
                graph.inputs.append(value)
        masks, experts = expose_selection(model)
        self._masks, self._names = len(masks), ["logits", *masks, *experts]
        self._session = plain_session(model, bundle.path)
        self._window = bundle.config.keep_window_size
        self._calls = [first_call(bundle, row[None]) for row in ids]
        self._base = []
        for call in self._calls:
            logits, *sets = self._session.run(self._names, call)
            logits, total = _shifted(logits[0])
            packed = [np.packbits(each) for each in sets[: self._masks]]
            self._base.append(
                (logits, total, [*packed, *(np.sort(each, -1) for each in sets[self._masks :])])
            )
            progress(ids.shape[1], "reading the text")

    def effect(self, changed: Mapping[str, Array], windows: int | None = None) -> Effect:
        """What the weights `changed`, by name, do in the place of the bundle's, in the first `windows`."""
        weights = {name: weight.astype(self._dtypes[name]) for name, weight in changed.items()}
        divergence, roots, tokens = 0.0, 0.0, 0
        agreeing: list[npt.NDArray[np.bool_]] = []
        keys, experts = [0, 0], [0, 0]
        known = zip(self._calls[:windows], self._base[:windows], strict=True)
        for call, (base, total, sets) in known:
            logits, *selections = self._session.run(self._names, {**call, **weights})
            other, sums = _shifted(logits[0])
            agreeing.append(base.argmax(-1) == other.argmax(-1))
            # log softmax is the shifted logits less the log of their sum
            off = ((base - other) * (np.exp(base) / total[:, None])).sum(-1, dtype=np.float64)
            each = np.maximum(off - np.log(total) + np.log(sums), 0)
            divergence, roots = divergence + float(each.sum()), roots + float(np.sqrt(each).sum())
            tokens += len(base)
            for index, (before, after) in enumerate(zip(sets, selections, strict=True)):
                if index < self._masks:
                    rows = np.unpackbits(before, count=after.size).reshape(after.shape).astype(bool) != after
                    rows = rows.any(-1)[..., self._window :]
                    keys = [keys[0] + int(rows.sum()), keys[1] + rows.size]
                else:
                    rows = (before != np.sort(after, -1)).any(-1)
                    experts = [experts[0] + int(rows.sum()), experts[1] + rows.size]
        changed_keys, changed_experts = (many / of if of else None for many, of in (keys, experts))
        same = np.concatenate(agreeing).astype(np.float64)
        return Effect(
            kl_divergence=divergence / tokens,
            typical_kl=(roots / tokens) ** 2,
            top1_agreement=float(same.mean()),
            changed_keys=changed_keys,
            changed_experts=changed_experts,
            top1_error=standard_error(same, len(agreeing)),
        )


def _shifted(logits: npt.NDArray[np.floating]) -> tuple[Array, npt.NDArray[np.float64]]:
    """Logits [tokens, vocab] less the largest of their row, and the sums of their exponentials."""
    shifted = logits.astype(np.float32) - logits.max(-1, keepdims=True)
    return shifted, np.exp(shifted).sum(-1, dtype=np.float64)
