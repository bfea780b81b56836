"""The built file itself: what it exports, and what it says to a runtime that it cannot serve."""

import ctypes
import re
import subprocess
import sys

from doge_export import plugin_library

_CREATE_STATUS = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
_GET_API = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
_GET_VERSION = ctypes.CFUNCTYPE(ctypes.c_void_p)


class _Base(ctypes.Structure):
    _fields_ = (("get_api", _GET_API), ("get_version", _GET_VERSION))


def _register(newest: int) -> list[tuple[int, str]]:
    """Statuses that RegisterCustomOps makes in a runtime whose newest API is `newest`."""
    made: list[tuple[int, str]] = []

    @_CREATE_STATUS
    def create_status(code: int, text: bytes) -> int:
        made.append((code, text.decode()))
        return 1  # nobody looks into it

    table = (ctypes.c_void_p * 300)(ctypes.cast(create_status, ctypes.c_void_p).value)
    get_api = _GET_API(lambda version: ctypes.addressof(table) if version <= newest else 0)
    version = ctypes.create_string_buffer(b"1.2.3")
    base = _Base(get_api, _GET_VERSION(lambda: ctypes.addressof(version)))
    register = ctypes.CDLL(str(plugin_library())).RegisterCustomOps
    register.restype = ctypes.c_void_p
    assert bool(register(None, ctypes.byref(base))) == bool(made)
    return made


def test_a_runtime_too_old_is_told_so() -> None:
    assert _register(16) == [(1, "doge: onnxruntime 1.2.3 is too old: this library needs 1.17 or newer.")]


def test_a_runtime_without_any_api_gets_no_operators() -> None:
    assert _register(0) == []


def test_one_name_is_exported() -> None:
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", str(plugin_library())], check=True, capture_output=True, text=True
    ).stdout
    assert re.findall(r" (\w+)$", listing, re.M) == ["DogeExportInstructionSet", "RegisterCustomOps"]


def test_it_needs_nothing_that_a_plain_linux_lacks() -> None:
    listing = subprocess.run(
        ["ldd", str(plugin_library())], check=True, capture_output=True, text=True
    ).stdout
    names = {line.split()[0].split("/")[-1] for line in listing.splitlines()}
    usual = r"linux-vdso\.so.*|lib(stdc\+\+|m|gcc_s|c|pthread)\.so\.\d+|ld-linux.*"
    assert {name for name in names if not re.fullmatch(usual, name)} == set()


def test_a_session_may_outlive_everything_at_exit() -> None:
    """The order in which libraries are torn down is not ours: a session left open is no crash."""
    code = (
        "from tests.plugins._models import decoder_layer\n"
        "node = decoder_layer()\n"
        "session = node.session(threads=2)\n"
        "session.run(None, node.inputs)\n"
        "import builtins; builtins.kept = session\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
