"""Train the fixtures `doge-tiny` (dense) and, with --moe-from, `doge-tiny-moe`.

The dense model starts from transformers' initial weights, except that A (zero there, which ties
every key) and dt_proj are drawn wider, so that the dynamic mask decides from the first step.
The MoE starts from a dense fixture: gate/up/down keep their names and weights, the experts' up
embeddings start at zero (so the first logits are the dense ones, which is asserted), and it is
trained with per-token routing; see doge_fast.py.

Every window is <|begin_of_text|> and 511 consecutive tokens of the training text; an epoch is a
shuffle of all windows at a random offset. The schedule is warmup - stable - decay. A checkpoint
in the work folder resumes an interrupted run at the same batch; before the decay has begun, a
run may also be resumed with other --steps and --decay, as the learning rate was the same.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import doge_fast

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
BOS, EOS = 0, 1
CONTEXT = 512


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def base_config() -> dict[str, Any]:
    return {
        "vocab_size": 4096,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "keep_window_size": 128,
        "rope_parameters": {
            "rope_type": "dynamic",
            "factor": 4.0,
            "original_max_position_embeddings": CONTEXT,
            "rope_theta": 10000.0,
        },
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }


def dense_model() -> Any:
    from transformers import DogeConfig, DogeForCausalLM

    model = DogeForCausalLM(DogeConfig(num_experts=256, num_experts_per_tok=8, **base_config()))
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.A, std=0.5)
        torch.nn.init.normal_(layer.self_attn.dt_proj.weight, std=0.2)
    return model


def moe_model(folder: Path, probe: Tensor) -> Any:
    """A MoE with the dense model's weights, whose first logits equal the dense ones."""
    from transformers import DogeConfig, DogeForCausalLM

    dense: Any = DogeForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    if dense.config.is_moe:
        raise ValueError(f"{folder.name} is a MoE already")
    settings = dense.config.to_dict()
    settings.update(is_moe=True, num_experts=256, num_experts_per_tok=8)
    model = DogeForCausalLM(DogeConfig(**settings))
    missing, unexpected = model.load_state_dict(dense.state_dict(), strict=False)
    if unexpected or {name.split(".")[-2] for name in missing} != {"router_gate", "down_embed", "up_embed"}:
        raise ValueError(f"the weights of {folder.name} do not fit the MoE")
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.mlp.router_gate.weight, std=0.1)
        torch.nn.init.normal_(layer.mlp.down_embed.weight, std=0.25)
        torch.nn.init.zeros_(layer.mlp.up_embed.weight)
    with torch.no_grad():
        gap = (doge_fast.forward(dense, probe)[0] - doge_fast.forward(model, probe)[0]).abs().max()
    if float(gap) > 1e-6:
        raise ValueError(f"the MoE does not start at the dense logits (difference {gap:.1e})")
    return model


def load_documents(corpus: Path, tokenizer_folder: Path) -> list[Tensor]:
    """The training documents as ids, every document followed by <|end_of_text|>."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    documents = (corpus / "train.txt").read_text(encoding="utf-8").split("\f")
    encodings = tokenizer.encode_batch(documents, add_special_tokens=False)
    return [torch.tensor([*encoding.ids, EOS]) for encoding in encodings]


class Windows:
    """Batch number `step` as a function of the seed alone, so that a run can resume anywhere."""

    def __init__(self, stream: Tensor, batch: int, seed: int) -> None:
        self.stream, self.batch, self.seed = stream, batch, seed
        self.per_epoch = ((len(stream) - 2 * CONTEXT) // CONTEXT) // batch
        self.epoch, self.order = -1, torch.empty(0, dtype=torch.long)
        if self.per_epoch < 1:
            raise ValueError("the training text is shorter than one batch")

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        epoch, index = divmod(step, self.per_epoch)
        if epoch != self.epoch:
            generator = torch.Generator().manual_seed(self.seed * 1000 + epoch)
            offset = int(torch.randint(CONTEXT, (1,), generator=generator))
            count = self.per_epoch * self.batch
            self.order = torch.randperm(count, generator=generator) * CONTEXT + offset
            self.epoch = epoch
        starts = self.order[index * self.batch : (index + 1) * self.batch]
        targets = torch.stack([self.stream[s : s + CONTEXT] for s in starts.tolist()])
        inputs = targets.roll(1, dims=1)
        inputs[:, 0] = BOS
        return inputs, targets


def rate(step: int, steps: int, warmup: int, decay: int) -> float:
    """Warmup - stable - decay: linear up, flat, then 1 - sqrt down to zero."""
    if step < warmup:
        return (step + 1) / warmup
    if step < steps - decay:
        return 1.0
    return 1.0 - math.sqrt((step - (steps - decay)) / decay)


EXPERT_RATE = 8.0  # of the learning rate of the other matrices


def optimizer_for(model: Any, lr: float) -> torch.optim.AdamW:
    """Weight decay on matrices only; A, norms and the residual weights are left free.

    An expert row sees one token in thirty: experts learn eight times as fast, without decay. With the
    rate and decay of the other matrices they stayed near zero and gave 0.0002 bits a byte.
    """
    experts = [p for name, p in model.named_parameters() if "_embed." in name]
    known = {id(p) for p in experts}
    params = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    groups = [
        {"params": [p for p in params if p.dim() >= 2], "weight_decay": 0.1, "factor": 1.0},
        {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0, "factor": 1.0},
        {"params": experts, "weight_decay": 0.0, "factor": EXPERT_RATE},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-8)


def train(model: Any, windows: Windows, args: argparse.Namespace) -> dict[str, Any]:
    optimizer = optimizer_for(model, args.lr)
    state_file = args.work / "state.pt"
    first, spent = 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        same = state["steps"] == args.steps and state["decay"] == args.decay
        flat = state["step"] <= min(state["steps"] - state["decay"], args.steps - args.decay)
        if state["seed"] != args.seed or not (same or flat):
            raise ValueError(f"{state_file.name} in the work folder is of another run; remove it")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, spent = state["step"], state["seconds"]
        note(f"resuming at step {first}")

    parameters = list(model.parameters())

    def loss_of(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits, seen = doge_fast.forward(model, inputs)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return loss, loss + args.balance * seen.balance

    compiled: Any = torch.compile(loss_of) if args.compile else loss_of

    def part(pair: tuple[Tensor, Tensor]) -> tuple[float, tuple[Tensor, ...]]:
        loss, total = compiled(*pair)
        return float(loss.detach()), torch.autograd.grad(total, parameters)

    def set_gradients(step: int) -> float:
        """The mean gradient over the batch's parts, added in their order; returns the loss.

        The parts run on a pool of one-threaded workers, which keeps the pace when other
        programs use the same cores, and gives the same bits for any number of threads.
        """
        inputs, targets = windows(step)
        parts = [
            (inputs[i : i + args.part], targets[i : i + args.part]) for i in range(0, args.batch, args.part)
        ]
        alone = 1 if step == first else 0  # the very first call compiles, so nothing runs beside it
        results = [*map(part, parts[:alone]), *pool.map(part, parts[alone:])]
        for parameter, *gradients in zip(parameters, *(grads for _, grads in results), strict=True):
            parameter.grad = torch.stack(gradients).mean(0)
        return sum(loss for loss, _ in results) / len(results)

    pool = ThreadPoolExecutor(args.threads, initializer=torch.set_num_threads, initargs=(1,))
    began = time.monotonic() - spent
    running, last = 0.0, 0.0
    for step in range(first, args.steps):
        factor = rate(step, args.steps, args.warmup, args.decay)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * factor * group["factor"]
        last = set_gradients(step)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if not math.isfinite(last):
            raise ValueError(f"the loss is not finite at step {step}")
        running = last if step == first else 0.98 * running + 0.02 * last
        elapsed = time.monotonic() - began
        if step % 20 == 0 or step + 1 == args.steps:
            pace = (elapsed - spent) / (step + 1 - first)
            note(
                f"step {step:5d}  loss {last:.4f}  smooth {running:.4f}  norm {float(norm):.2f}  "
                f"lr {args.lr * factor:.2e}  {pace:.2f} s/step  {elapsed:.0f} s"
            )
        if (step + 1) % 200 == 0:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
                "steps": args.steps,
                "decay": args.decay,
                "seed": args.seed,
                "seconds": elapsed,
            }
            torch.save(state, state_file)
    return {
        "steps": args.steps,
        "tokens": args.steps * args.batch * CONTEXT,
        "seconds": round(time.monotonic() - began, 1),
        "threads": args.threads,
        "final_smoothed_loss": round(running, 4),
        "lr": args.lr,
        "batch": args.batch,
        "warmup": args.warmup,
        "decay": args.decay,
        "seed": args.seed,
        "balance": args.balance,
        "stream_tokens": len(windows.stream),
        "steps_per_epoch": windows.per_epoch,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def save(model: Any, out: Path, tokenizer_folder: Path) -> None:
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(
        bos_token_id=0, eos_token_id=1, pad_token_id=2, do_sample=True, temperature=0.8, top_p=0.9
    )
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(out), safe_serialization=True)
    for name in TOKENIZER_FILES:
        if (tokenizer_folder / name).resolve() != (out / name).resolve():
            shutil.copyfile(tokenizer_folder / name, out / name)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--corpus", type=Path, default=Path("build/corpus"), help="folder with train.txt")
    add("--tokenizer", type=Path, help="tokenizer folder (with --moe-from: taken from there)")
    add("--out", type=Path, required=True, help="model folder to write")
    add("--work", type=Path, default=Path("build/train"), help="folder of checkpoints")
    add("--moe-from", type=Path, metavar="FOLDER", help="make a MoE of this dense fixture")
    add("--steps", type=int, default=2400)
    add("--batch", type=int, default=4, help="windows of 512 tokens a step")
    add("--part", type=int, default=1, help="windows a worker takes at a time")
    add("--lr", type=float, default=2.5e-3)
    add("--warmup", type=int, default=100)
    add("--decay", type=int, default=500, help="steps of the final decay")
    add("--balance", type=float, default=0.0, help="weight of the load-balancing loss (MoE)")
    add("--seed", type=int, default=20261123)
    add("--threads", type=int, default=2)
    add("--compile", action="store_true", help="torch.compile the step (needs a C++ compiler)")
    return parser.parse_args()


def main() -> int:
    args = parse()
    tokenizer_folder = args.moe_from or args.tokenizer
    try:
        if tokenizer_folder is None:
            raise ValueError("--tokenizer or --moe-from is needed")
        if min(args.steps, args.batch, args.warmup, args.decay, args.threads) < 1:
            raise ValueError("steps, batch, warmup, decay and threads must be at least 1")
        if args.part < 1 or args.batch % args.part:
            raise ValueError("batch must be a multiple of part")
        if args.warmup + args.decay > args.steps:
            raise ValueError("warmup and decay together are longer than the run")
        torch.set_num_threads(1)
        torch.manual_seed(args.seed)
        args.work.mkdir(parents=True, exist_ok=True)
        stream = torch.cat(load_documents(args.corpus, tokenizer_folder))
        windows = Windows(stream, args.batch, args.seed)
        probe = windows(0)[0][:2]
        model = moe_model(args.moe_from, probe) if args.moe_from else dense_model()
        model.config.architectures = ["DogeForCausalLM"]
        model.set_attn_implementation("eager")
        gap = doge_fast.verify(model, probe)
        note(f"fast forward equals the reference's eager forward (largest difference {gap:.1e})")
        record = train(model, windows, args)
        save(model, args.out, tokenizer_folder)
        gap = doge_fast.verify(model, probe, tolerance=1e-3, strays=0.01)
        note(f"after training the largest difference is {gap:.1e}")
        (args.work / "training.json").write_text(json.dumps(record, indent=2) + "\n")
        print(json.dumps(record, indent=2))
    except (OSError, ValueError) as error:
        note(f"error: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
