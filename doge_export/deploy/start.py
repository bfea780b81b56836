"""How a model repository is started and called: the script and the README that lie in it."""

__all__ = ["README", "RUN", "write"]

from collections.abc import Sequence
from pathlib import Path

from doge_export.core.bundle.options import ONNXRUNTIME_SINCE
from doge_export.deploy.python_model import INPUTS, TEXT

RUN = "run.sh"
README = "README.md"

_HEAD = """\
#!/bin/sh
# Start Triton Inference Server with the model in this folder: ./run.sh [more options of tritonserver]
#
"""
#: For the Python backend. Its stub embeds Python, which takes the packages of the python3 that it finds first
#: on the PATH: of a virtual environment too, .pth files and all. Older stubs ignore PYTHONPATH, and those
#: with a pybind11 before 2.12 (Triton before 24.12) take the items of numpy 2's arrays to be of no bytes.
_PYTHON = """\
# PYTHON        the interpreter whose packages the model uses, doge-export among them; of the version of the
#               server's Python backend, which is 3.12 in NVIDIA's containers. Default: python3.
# TRITONSERVER  the server, of 24.12 or later. Default: tritonserver, and where there is none that of PYTHON's
#               nvidia-pytriton. This is of 24.10, for CPUs, and needs numpy 1, which doge-export does not ask
#               for but runs with. It wants an environment of its own, with doge-export and then:
#                   pip install --no-deps nvidia-pytriton 'numpy<2'
set -eu
here=$(cd -- "$(dirname -- "$0")" && pwd)
python=${PYTHON:-python3}
"$python" -P -c 'import doge_export.runtime' 2>/dev/null || {
    echo "$python has no doge-export: set PYTHON to the interpreter that has it." >&2
    exit 2
}
PATH=$("$python" -c 'import os, sys; print(os.path.dirname(sys.executable))'):$PATH
export PATH
server=${TRITONSERVER:-tritonserver}
command -v "$server" >/dev/null || {
    wheel=$("$python" -P -c 'import os; from importlib.util import find_spec as find
found = find("pytriton"); print(os.path.abspath(found.submodule_search_locations[0]) if found else "")')
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    stub=$wheel/tritonserver/python_backend_stubs/$version/triton_python_backend_stub
    if [ -z "$wheel" ] || [ ! -f "$stub" ]; then
        echo "There is no $server, and $python has no nvidia-pytriton for its version $version:" \\
            "set TRITONSERVER or PYTHON, as $0 says." >&2
        exit 2
    fi
    "$python" -P -c 'import numpy, sys; sys.exit(not numpy.__version__.startswith("1."))' || {
        echo "The server of nvidia-pytriton reads arrays of numpy 2 wrongly: set PYTHON, as $0 says." >&2
        exit 2
    }
    # The wheel keeps the backend and its stubs, one a version of Python, apart; the server wants one folder.
    backends=${XDG_CACHE_HOME:-$HOME/.cache}/doge-export/triton-$version
    mkdir -p "$backends/python"
    ln -sfn "$wheel"/tritonserver/backends/python/* "$stub" "$backends/python/"
    LD_LIBRARY_PATH=$wheel/../nvidia_pytriton.libs${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    export LD_LIBRARY_PATH
    server=$wheel/tritonserver/bin/tritonserver
    set -- "--backend-directory=$backends" "$@"
}
"""
#: For a backend that NVIDIA's containers have.
_TENSORS = """\
# TRITONSERVER  the server. Default: tritonserver.
set -eu
here=$(cd -- "$(dirname -- "$0")" && pwd)
cd "$here" # paths in config.pbtxt start here
server=${TRITONSERVER:-tritonserver}
command -v "$server" >/dev/null || {
    echo "There is no $server: run this in NVIDIA's container, or set TRITONSERVER." >&2
    exit 2
}
"""

_CALL_TEXT = """\
One request with its whole text, and one with a server-sent event a piece:

```console
curl localhost:8000/v2/models/{name}/generate -d '{{"text_input": "Once upon a time", "temperature": 0}}'
curl -N localhost:8000/v2/models/{name}/generate_stream \\
    -d '{{"text_input": "Once upon a time", "stream": true, "max_new_tokens": 50, "seed": 1}}'
```

Besides `text_input` a request may have
{options};
what it leaves out, the bundle's generation_config.json says. The answer has `text_output` and
`finish_reason`: eos, stop or length, and empty before the last piece. Errors come as `error`, in a stream as
an event.
"""
_CALL_TENSORS = """\
The model takes and gives the tensors that `{name}/config.pbtxt` names; token ids, the choice of the next
token and the cache are the client's. `call` in the bundle's doge_export.json says how to call the graph.
"""
_NOTES = {
    "python": "",
    "onnxruntime": """
It needs onnxruntime {min_onnxruntime}, which Triton has from {min_triton} on. It was run on a CPU, with a
backend built from Triton's sources; NVIDIA's containers were not at hand. The cache goes over the network
with every token; `--backend python` keeps it in the server.
""",
    "tensorrt": """
**This was never run, and TensorRT may refuse it.** The engine updates its cache in place: TensorRT wants each
`past_key_values` and its `present` to be one buffer, and Triton's TensorRT backend gives each its own.
""",
}
#: The opset of a graph -> the first Triton Inference Server whose onnxruntime runs it: see `ort_version` in
#: build.py of triton-inference-server/server.
_SINCE = {23: "25.09", 24: "26.02"}


def write(folder: Path, name: str, backend: str, options: Sequence[str], opset: int) -> None:
    """Write both beside the model `name`. `options`: more words of the server's command line, as a shell
    reads them; `$here` is the repository. `opset`: of its graph."""
    command = " ".join(['exec "$server"', '"--model-repository=$here"', *options, '"$@"'])
    script = folder / RUN
    script.write_text(
        _HEAD + (_PYTHON if backend == "python" else _TENSORS) + command + "\n", encoding="utf-8"
    )
    script.chmod(0o755)
    call = _CALL_TEXT if backend == "python" else _CALL_TENSORS
    others = [f"`{each}`" for each in INPUTS if each != TEXT]
    called = call.format(name=name, options=f"{', '.join(others[:-1])} and {others[-1]}")
    notes = _NOTES[backend].format(min_onnxruntime=ONNXRUNTIME_SINCE[opset], min_triton=_SINCE[opset])
    (folder / README).write_text(
        f"# {name}\n\nA model repository of Triton Inference Server, {backend} backend. `./{RUN}` starts\n"
        f"the server and says what it needs; more options go to tritonserver.\n\n{called}{notes}",
        encoding="utf-8",
    )
