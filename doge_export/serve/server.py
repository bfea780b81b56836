"""The server's life: a socket, the application behind it, and an end that leaves no thread behind."""

__all__ = ["Server"]

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from doge_export.core.bundle import Bundle
from doge_export.core.errors import DogeExportError
from doge_export.runtime.scheduling import CacheLimits

_MISSING = "It needs starlette, uvicorn and prometheus-client: pip install 'doge-export[serve]'."
_SWITCH = 0.0005  # seconds that a thread keeps the interpreter to itself at most
_PATIENCE = 5  # seconds that responses under way have to end
_LAST_WORDS = 2  # and then to say that they could not


class Server:
    """Bundles, of which the first is loaded, and a socket that listens.

    A bundle is called as its folder is, a single one also by `name`; `aliases` has alias -> name. `idle`:
    seconds without a request after which a model is let go; `max_loaded`: how many are in memory at once.
    `credentials`: pages of `origins` may send cookies. `variables`: what chat templates read, and
    `seed`: what is drawn with, unless a request says otherwise.

    Raises:
        DogeExportError: starlette, uvicorn or prometheus-client is missing, a key or an origin cannot be one,
            two models have one name, the first cannot be loaded, another has no such chat template, or the
            address cannot be listened on.
    """

    def __init__(
        self,
        bundles: Bundle | Sequence[Bundle],
        host: str = "127.0.0.1",
        port: int = 8000,
        threads: int | None = None,
        parallel: int = 32,
        name: str | None = None,
        chat_template: str | None = None,
        keys: Sequence[str] = (),
        origins: Sequence[str] = (),
        aliases: Mapping[str, str] | None = None,
        idle: float | None = None,
        max_loaded: int | None = None,
        caches: CacheLimits | None = None,
        credentials: bool = False,
        variables: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> None:
        try:
            import prometheus_client  # noqa: F401
            import starlette  # noqa: F401
            import uvicorn  # noqa: F401
        except ImportError:
            raise DogeExportError("`serve` cannot answer HTTP here.", _MISSING) from None
        from doge_export.serve.access import check_keys, check_origins
        from doge_export.serve.conversation import template_variables
        from doge_export.serve.loading import Loader
        from doge_export.serve.names import bundle_name
        from doge_export.serve.registry import Offer, Registry

        bundles = [bundles] if isinstance(bundles, Bundle) else bundles
        if name is not None and len(bundles) > 1:
            raise DogeExportError("One name is not for several bundles.", "Give aliases.")
        check_keys(keys)
        check_origins(origins)
        self._keys, self._origins, self._credentials = keys, origins, credentials
        variables = template_variables(variables)
        names = [name or bundle_name(bundle) for bundle in bundles]
        loaders = [
            Loader(bundle, name, threads, parallel, chat_template, caches, variables, seed)
            for bundle, name in zip(bundles, names, strict=True)
        ]
        offers = [Offer(name, loader.load) for name, loader in zip(names, loaders, strict=True)]
        self._registry = Registry(offers, aliases, idle, max_loaded)
        for loader in loaders:
            loader.check()
        self._socket = _listening(host, port)
        try:
            first = loaders[0].load()  # the first client does not wait for it
        except BaseException:
            self._socket.close()
            raise
        self._registry.put(names[0], first)
        self._about = first.about

    @property
    def url(self) -> str:
        """The address on which it listens; the port is the real one where 0 was asked for."""
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def name(self) -> str:
        """The name by which clients call the first model."""
        return self.names[0]

    @property
    def names(self) -> tuple[str, ...]:
        """The names by which clients call the models, without aliases."""
        return self._registry.names.own

    @property
    def description(self) -> str:
        """The first model, its precision and its cache, in a few words, and the others' names."""
        first, *others = self.names
        said = f"Serving {first} ({self._about})"
        return f"{said}, and {', '.join(others)} when asked for," if others else said

    def run(self, on_ready: Callable[[], None] | None = None) -> None:
        """Answer until Ctrl-C or SIGTERM."""
        import uvicorn

        from doge_export.serve.app import build_app
        from doge_export.serve.connections import http_config, quietly

        class Ending(uvicorn.Server):
            """Ctrl-C is how a server ends, not an error. The first signal gives the responses under way some
            seconds, the second none, and the third does not wait for a prompt that is being read."""

            _hurry: asyncio.Event

            @contextlib.contextmanager
            def capture_signals(self) -> Generator[None]:
                self._hurry = asyncio.Event()
                loop = asyncio.get_running_loop()
                for number in (signal.SIGINT, signal.SIGTERM):
                    loop.add_signal_handler(number, self._end)
                yield

            def _end(self) -> None:
                self.force_exit = self._hurry.is_set()
                if self.should_exit:
                    self._hurry.set()
                self.should_exit = True

            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                asyncio.get_running_loop().set_exception_handler(quietly())
                await super().startup(sockets)
                registry.watch()
                if on_ready is not None:
                    on_ready()

            async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
                ending = asyncio.create_task(self._cut_off())
                await super().shutdown(sockets)
                ending.cancel()
                await registry.close()

            async def _cut_off(self) -> None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._hurry.wait(), _PATIENCE)
                registry.cancel()
                await asyncio.sleep(_LAST_WORDS)
                for connection in list(self.server_state.connections):  # of clients that do not send or read
                    connection.transport.abort()

        registry = self._registry
        app = build_app(registry, keys=self._keys, origins=self._origins, credentials=self._credentials)
        # The thread that makes tokens waits for the interpreter after every call, by default 5 ms.
        sys.setswitchinterval(_SWITCH)
        try:
            with asyncio.Runner(loop_factory=_fast_loop()) as runner:
                runner.run(Ending(http_config(app)).serve(sockets=[self._socket]))
        finally:
            self._socket.close()


def _fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's event loop, which gives a sixth more tokens a second to many clients; asyncio's where there is
    none, as on Windows."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, kind, protocol)
    except OSError as error:
        raise DogeExportError(f"{host} is no address to listen on: {error.strerror}.") from None
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(128)
    except OSError as error:
        opened.close()
        raise DogeExportError(
            f"{host}:{port} cannot be listened on: {error.strerror}.",
            "Choose another with --port; 0 takes a free one.",
        ) from None
    return opened
