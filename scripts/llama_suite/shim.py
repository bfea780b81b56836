"""Takes llama-server's options, and becomes `doge-export serve` with ours; with a GGUF it becomes a
llama-server that loads it, whatever model the test names.

    DOGE_SUITE_BUNDLE=out/bundle python -m llama_suite.shim --port 8080 --api-key secret ...
"""

__all__ = ["options_of", "without_model"]

import argparse
import datetime
import json
import os
import sys
import tempfile
from pathlib import Path

#: llama-server's options with a value that change nothing here: how it computes, and what it would load.
_COMPUTING = (
    "--batch-size", "--ubatch-size", "--threads", "--n-gpu-layers", "--ctx-size", "--n-predict", "--temp",
    "-fa", "-ctk", "-ctv", "--pooling", "--cache-ram", "--reasoning", "--reasoning-format",
)  # fmt: skip
_MODELS = ("--model", "--model-url", "--hf-repo", "--hf-file")
#: Of the templates that llama-server knows by name, the one that a test asks for and any server could have.
_NAMED = {
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
}


def main() -> None:
    program = os.environ.get("DOGE_SUITE_LLAMA_SERVER")
    if program:
        os.execv(program, [program, "--model", os.environ["DOGE_SUITE_GGUF"], *without_model(sys.argv[1:])])
    command = [sys.executable, "-m", "doge_export", *options_of(sys.argv[1:])]
    os.execv(sys.executable, command)


def without_model(given: list[str]) -> list[str]:
    """llama-server's options without those that name a model."""
    kept, at = [], 0
    while at < len(given):
        if given[at] in _MODELS:
            at += 2
            continue
        kept += [given[at]] if given[at] != "--offline" else []
        at += 1
    return kept


def options_of(given: list[str]) -> list[str]:
    """The command line of `doge-export serve` that says what llama-server's options say.

    Raises:
        SystemExit: an option asks for what is not done here; its name is the last line on stderr.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("--port", "--host", "--alias", "--parallel", "--api-key", "--cors-origins", "--seed"):
        parser.add_argument(name)
    parser.add_argument("--chat-template")
    parser.add_argument("--chat-template-file", type=Path)
    for name in (*_COMPUTING, *_MODELS):
        parser.add_argument(name)
    for name in ("--offline", "--slots", "--no-slots", "--metrics", "--jinja", "--no-jinja", "--verbose",
                 "--cont-batching", "--kv-unified", "--swa-full", "--context-shift"):  # fmt: skip
        parser.add_argument(name, action="store_true")
    options, others = parser.parse_known_args(given)
    if others:
        sys.exit(f"doge-export serve has nothing like {others[0]}")
    command = ["serve", str(_bundle(options)), "--host", options.host, "--port", options.port]
    name = os.environ.get("DOGE_SUITE_NAME") or options.alias
    command += ["--name", name] if name else []
    command += ["--parallel", options.parallel] if options.parallel else []
    command += ["--api-key", options.api_key] if options.api_key else []
    # llama-server lets every page ask, with cookies, where nobody says which.
    command += ["--cors", options.cors_origins or "*", "--cors-credentials"]
    command += ["--seed", options.seed] if options.seed else []
    # It gives templates the time, and whether to think, which it does unless --reasoning is off.
    today = datetime.date.today()
    variables = {
        "date_string": today.strftime("%d %b %Y"),
        "datetime": today.strftime("%b %d %Y"),
        "enable_thinking": options.reasoning != "off",
    }
    command += ["--chat-template-kwargs", json.dumps(variables)]
    return command


def _bundle(options: argparse.Namespace) -> Path:
    """Links to the bundle, beside the chat template that is asked for and llama-server's own settings of
    texts; the bundle itself where nothing is asked for."""
    bundle = Path(os.environ["DOGE_SUITE_BUNDLE"])
    written: dict[str, str] = {}
    template = _NAMED.get(options.chat_template, options.chat_template)
    if options.chat_template_file is not None:
        template = options.chat_template_file.read_text(encoding="utf-8")
    if template is not None:
        written["chat_template.jinja"] = template
    if options.temp is not None or options.n_predict is not None:
        written["generation_config.json"] = _settings(bundle / "generation_config.json", options)
    if not written:
        return bundle
    folder = Path(tempfile.mkdtemp(dir=os.environ.get("DOGE_SUITE_FOLDER")))
    for file in bundle.iterdir():
        if file.name not in written:
            (folder / file.name).symlink_to(file.resolve())
    for name, text in written.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def _settings(file: Path, options: argparse.Namespace) -> str:
    """The generation_config.json with llama-server's temperature and number of new tokens."""
    settings = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if options.temp is not None:
        drawn = float(options.temp) > 0
        settings |= {"do_sample": drawn, "temperature": float(options.temp) if drawn else 1.0}
    if options.n_predict is not None and int(options.n_predict) > 0:
        settings["max_new_tokens"] = int(options.n_predict)
    return json.dumps(settings)


if __name__ == "__main__":
    main()
