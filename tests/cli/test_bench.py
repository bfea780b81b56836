"""`doge-export bench` from the command line inwards, with real workers."""

import json
import subprocess
import sys

import pytest

from doge_export.bench.process import Worker
from doge_export.cli import main
from doge_export.core.bundle import Bundle
from doge_export.core.errors import DogeExportError
from doge_export.export.pipeline import export_model
from tests.runtime._toy import continued, write_toy_bundle

FEW = ("--prompt-tokens", "5", "--new-tokens", "6", "--rounds", "2", "--threads", "1")


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Bundle:
    return write_toy_bundle(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Bundle:
    return export_model("doge-tiny", tmp_path_factory.mktemp("tiny") / "bundle", validate=False).bundle


def _json(capsys, *arguments: str) -> dict:
    assert main(["bench", *arguments, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out)


def test_the_keys_that_others_read(toy, capsys):
    data = _json(capsys, str(toy.path), *FEW)
    for key in ("decode_tokens_per_second", "prefill_tokens_per_second", "peak_memory_bytes", "load_seconds"):
        assert data[key] > 0
    assert data["against"] == {}
    assert (data["prompt_tokens"], data["new_tokens"], data["threads"]) == (5, 6, 1)
    assert data["graph"] == "model.onnx"
    assert data["machine"]["cpus"] >= 1 and "onnxruntime" in data["versions"]
    rates = [run["decode_tokens"] / run["decode_seconds"] for run in data["rounds"]]
    assert len(rates) == 2
    assert data["decode_tokens_per_second"] == pytest.approx(max(rates))
    assert data["median"]["decode_tokens_per_second"] == pytest.approx(sum(rates) / 2)
    assert data["rounds"][0]["decode_tokens"] == 5 and data["rounds"][0]["prefill_tokens"] == 5


def test_beside_transformers(tiny, capsys, tmp_path):
    arguments = [str(tiny.path), "--against", "transformers", "--reference", "doge-tiny", *FEW]
    assert main(["bench", *arguments, "--json", str(tmp_path / "b.json")]) == 0
    head, ours, other, ratio = capsys.readouterr().out.splitlines()
    data = json.loads((tmp_path / "b.json").read_text())
    theirs = data["against"]["transformers"]
    assert theirs["decode_tokens_per_second"] > 0
    assert theirs["ratio"] == pytest.approx(
        data["decode_tokens_per_second"] / theirs["decode_tokens_per_second"]
    )
    assert theirs["equal_tokens"] == 1.0  # both do the same work
    assert theirs["peak_memory_bytes"] > data["peak_memory_bytes"]
    assert data["graph"] == ("decode.onnx" if data["native"] else "model.onnx")
    assert {"torch", "transformers"} <= set(data["versions"])
    assert "5 tokens of prompt, 6 new, 1 threads" in head
    assert ours.startswith("doge-export   decode ") and other.startswith("transformers  decode ")
    assert ratio.startswith(f"{theirs['ratio']:.2f} times transformers")


def test_sampled_beside_greedy(tiny, capsys, tmp_path):
    arguments = [str(tiny.path), "--temperature", "0.8", "--top-p", "0.9", *FEW]
    assert main(["bench", *arguments, "--json", str(tmp_path / "b.json")]) == 0
    _, greedy, sampled, ratio = capsys.readouterr().out.splitlines()
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["sampled"]["options"] == {"seed": 0, "temperature": 0.8, "top_p": 0.9}
    medians = [side["median"]["decode_tokens_per_second"] for side in (found["sampled"], found)]
    assert found["sampled"]["ratio"] == pytest.approx(medians[0] / medians[1])
    assert greedy.startswith("doge-export  decode ") and sampled.startswith("sampled      decode ")
    rate = f"{found['sampled']['ratio']:.2f} of the greedy rate"
    assert ratio == f"{rate} when sampled with temperature 0.8, top_p 0.9 (medians)"
    assert "sampled" not in _json(capsys, str(tiny.path), *FEW)


def test_rows_in_a_pool(tiny, capsys):
    one, four = (_json(capsys, str(tiny.path), *FEW, "--rows", rows) for rows in "14")
    assert (one["rows"], four["rows"]) == (1, 4)
    assert [run["decode_tokens"] for run in four["rounds"]] == [20, 20]
    assert [run["prefill_tokens"] for run in four["rounds"]] == [20, 20]
    assert main(["bench", str(tiny.path), *FEW, "--rows", "4"]) == 0
    assert "6 new, 4 rows, 1 threads" in capsys.readouterr().out


def test_the_first_row_of_several_is_the_one_alone(tiny):
    with Worker("doge_export.bench.worker") as worker:
        worker.call("open", bundle=str(tiny.path), threads=1)
        alone = worker.call("round", prompt=[5, 6, 7], new_tokens=20)["tokens"]
        assert worker.call("rows", prompt=[5, 6, 7], new_tokens=20, rows=3)["tokens"] == alone


def test_rows_are_measured_alone(toy, capsys):
    with_another = ["--against", "transformers", "--reference", "doge-tiny", "--rows", "2"]
    assert main(["bench", str(toy.path), *with_another]) == 2
    assert "measured alone" in capsys.readouterr().err
    assert main(["bench", str(toy.path), "--temperature", "1", "--rows", "2"]) == 2
    assert "measured alone" in capsys.readouterr().err


def test_ours_runs_without_torch(toy):
    code = (
        "import sys\n"
        "from doge_export.bench.worker import Ours\n"
        "ours = Ours()\n"
        f"ours.open({str(toy.path)!r}, 1)\n"
        "tokens = ours.round([3, 4], 3)['tokens']\n"
        f"assert tokens == {continued([3, 4], 3)}, tokens\n"
        "assert ours.memory() > 0\n"
        "heavy = {'torch', 'transformers', 'onnx', 'onnxscript', 'click'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--prompt-tokens", "0"], "--prompt-tokens"),
        (["--new-tokens", "-3"], "--new-tokens"),
        (["--threads", "0"], "--threads"),
        (["--rounds", "0"], "--rounds"),
        (["--against", "llama"], "--against"),
        (["--against", "transformers"], "--reference"),
        (["--reference", "doge-tiny"], "--against"),
        (["--against", "transformers", "--reference", "doge-tiny"], "is not the one that"),
        (["--against", "transformers", "--reference", "nothing-here"], "nothing-here"),
    ],
    ids=str,
)
def test_wrong_arguments_exit_2_with_a_sentence(toy, capsys, arguments, sentence):
    assert main(["bench", str(toy.path), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err and "Traceback" not in err


def test_more_than_a_static_cache_holds(capsys, tmp_path):
    write_toy_bundle(tmp_path, "static", max_length=8)
    assert main(["bench", str(tmp_path), *FEW[:-2], "--new-tokens", "5"]) == 2
    assert "need 9 slots" in capsys.readouterr().err
    assert _json(capsys, str(tmp_path), *FEW, "--new-tokens", "4")["graph"] == "model.onnx"


def test_what_is_no_bundle(capsys, tmp_path):
    assert main(["bench", str(tmp_path)]) == 2
    assert "is not a bundle" in capsys.readouterr().err


def test_a_damaged_graph_is_the_worker_s_sentence(capsys, tmp_path):
    bundle = write_toy_bundle(tmp_path)
    bundle.model_path.write_bytes(b"junk")
    assert main(["bench", str(tmp_path), *FEW]) == 2
    assert "cannot load" in capsys.readouterr().err


def test_a_worker_that_fails_says_how(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("import sys\nprint('half')\nsys.exit('no such thing')\n")
    (tmp_path / "lazy.py").write_text(
        "from doge_export.bench.serve import serve\n"
        "def loud(text):\n    print('noise')\n    return text\n"
        "serve({'loud': loud, 'fail': lambda: 1 / 0})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with Worker("broken") as worker, pytest.raises((RuntimeError, ValueError)):
        worker.call("anything")
    with Worker("lazy") as worker:
        assert worker.call("loud", text="é") == "é"
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            worker.call("fail")
        assert worker.call("loud", text="still here") == "still here"
    with Worker("nothing_of_this_name") as worker, pytest.raises(RuntimeError, match="No module named"):
        worker.call("anything")


def test_a_missing_torch_is_one_sentence(monkeypatch):
    from doge_export.bench.reference import Reference

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(DogeExportError, match=r"needs torch.*doge-export\[export\]"):
        Reference().open("anywhere", 1)
