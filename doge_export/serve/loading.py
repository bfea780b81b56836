"""How a model gets into memory."""

__all__ = ["Loader", "about_model"]

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from doge_export.core.bundle import MODEL, Bundle
from doge_export.core.tokenizer import Tokenizer
from doge_export.runtime import Session, open_folder
from doge_export.runtime.scheduling import CacheLimits
from doge_export.serve.registry import Loaded
from doge_export.serve.requests import RequestReader
from doge_export.serve.service import TextService


@dataclass(frozen=True)
class Loader:
    """Loads one bundle, or engine, under a name. `variables`: what its chat template reads, unless a request
    says otherwise; `seed`: of requests that say none."""

    bundle: Bundle
    name: str
    threads: int | None = None
    parallel: int = 32
    chat_template: str | None = None
    caches: CacheLimits | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None

    def check(self) -> None:
        """See that there is the chat template, where one was named: its manifest was read already.

        Raises:
            DogeExportError: there is none of that name, or no tokenizer.
        """
        if self.chat_template is not None:
            Tokenizer.load(self.bundle.path, self.chat_template)

    def load(self) -> Loaded:
        """The model, ready for its first request, from what lies in the folder now.

        Raises:
            DogeExportError: it cannot be loaded.
        """
        bundle = open_folder(self.bundle.path)
        tokenizer = Tokenizer.load(bundle.path, self.chat_template)
        tokenizer = replace(tokenizer, template_variables=self.variables)
        session = Session.open(bundle, self.threads)
        session.load_for_text()  # else the first request would wait for it
        reader = RequestReader(bundle, tokenizer, self.name, self.seed)
        service = TextService(session, tokenizer, self.parallel, caches=self.caches)
        return Loaded(service, reader, about_model(bundle, session))


def about_model(bundle: Bundle, session: Session) -> str:
    """The precision and the cache that a session of the bundle serves with, in a few words."""
    manifest = bundle.manifest
    decode = manifest.decode if session.candidates else None
    cache = f"{(decode or manifest).cache.kind} cache"
    if manifest.decode is not None:
        cache += f" of {MODEL if decode is None else decode.file}"
    return f"{manifest.options.label}, {cache}"
