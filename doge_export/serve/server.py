"""The server's life: a socket, the application behind it, and an end that leaves no thread behind."""

__all__ = ["Server"]

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Generator, Sequence

from doge_export.core.bundle import MODEL, Bundle
from doge_export.core.errors import DogeExportError
from doge_export.core.tokenizer import Tokenizer
from doge_export.runtime import Session
from doge_export.runtime.scheduling import CacheLimits

_MISSING = "It needs starlette, uvicorn and prometheus-client: pip install 'doge-export[serve]'."
_SWITCH = 0.0005  # seconds that a thread keeps the interpreter to itself at most
_PATIENCE = 5  # seconds that responses under way have to end
_LAST_WORDS = 2  # and then to say that they could not


class Server:
    """A bundle, its session and a socket that listens.

    Raises:
        DogeExportError: starlette, uvicorn or prometheus-client is missing, a key or an origin cannot be one,
            the bundle cannot be loaded, or the address cannot be listened on.
    """

    def __init__(
        self,
        bundle: Bundle,
        host: str = "127.0.0.1",
        port: int = 8000,
        threads: int | None = None,
        parallel: int = 32,
        name: str | None = None,
        chat_template: str | None = None,
        keys: Sequence[str] = (),
        origins: Sequence[str] = (),
        caches: CacheLimits | None = None,
    ) -> None:
        try:
            import prometheus_client  # noqa: F401
            import starlette  # noqa: F401
            import uvicorn  # noqa: F401
        except ImportError:
            raise DogeExportError("`serve` cannot answer HTTP here.", _MISSING) from None
        from doge_export.serve.access import check_keys, check_origins

        check_keys(keys)
        check_origins(origins)
        self._keys, self._origins, self._caches = keys, origins, caches
        self._name = name or bundle.path.resolve().name
        self._tokenizer = Tokenizer.load(bundle.path, chat_template)
        self._socket = _listening(host, port)
        self._parallel, self._bundle = parallel, bundle
        self._session = Session.open(bundle, threads)
        self._session.load_for_text()  # the first client does not wait for it

    @property
    def url(self) -> str:
        """The address on which it listens; the port is the real one where 0 was asked for."""
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def name(self) -> str:
        """The name by which clients call the model."""
        return self._name

    @property
    def description(self) -> str:
        """The model, its precision and its cache, in a few words."""
        manifest = self._bundle.manifest
        decode = manifest.decode if self._session.candidates else None
        cache = f"{(decode or manifest).cache.kind} cache"
        if manifest.decode is not None:
            cache += f" of {MODEL if decode is None else decode.file}"
        return f"Serving {self._name} ({manifest.options.label}, {cache})"

    def run(self, on_ready: Callable[[], None] | None = None) -> None:
        """Answer until Ctrl-C or SIGTERM."""
        import uvicorn

        from doge_export.serve.app import build_app
        from doge_export.serve.connections import http_config, quietly
        from doge_export.serve.requests import RequestReader
        from doge_export.serve.service import TextService

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
                if on_ready is not None:
                    on_ready()

            async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
                ending = asyncio.create_task(self._cut_off())
                await super().shutdown(sockets)
                ending.cancel()
                await asyncio.to_thread(service.close)

            async def _cut_off(self) -> None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._hurry.wait(), _PATIENCE)
                service.cancel()
                await asyncio.sleep(_LAST_WORDS)
                for connection in list(self.server_state.connections):  # of clients that do not send or read
                    connection.transport.abort()

        service = TextService(self._session, self._tokenizer, self._parallel, caches=self._caches)
        reader = RequestReader(self._bundle, self._tokenizer, self._name)
        app = build_app(service, reader, keys=self._keys, origins=self._origins)
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
