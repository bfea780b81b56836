"""A Llama with random weights as a GGUF file: every matrix in one type, norms in float32."""

__all__ = ["write"]

from pathlib import Path

import gguf
import numpy as np

from peers.base import Shape

_TYPES = {
    "F32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "F16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "Q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "Q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}


def write(path: Path, shape: Shape, kind: str, context: int = 2048) -> None:
    """Write the file. There is no vocabulary in it: tokens are numbers here."""
    matrix_type, file_type = _TYPES[kind]
    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "llama")
    writer.add_context_length(context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_vocab_size(shape.vocab)
    writer.add_file_type(file_type)
    writer.add_tokenizer_model("no_vocab")
    generator = np.random.default_rng(0)

    def matrix(name: str, outputs: int, inputs: int) -> None:
        values = generator.standard_normal((outputs, inputs), dtype=np.float32) * np.float32(0.02)
        packed = gguf.quants.quantize(values, matrix_type)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=matrix_type)

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(shape.hidden, np.float32))

    queries, values = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    matrix("token_embd", shape.vocab, shape.hidden)
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        norm(f"{block}.attn_norm")
        matrix(f"{block}.attn_q", queries, shape.hidden)
        matrix(f"{block}.attn_k", values, shape.hidden)
        matrix(f"{block}.attn_v", values, shape.hidden)
        matrix(f"{block}.attn_output", shape.hidden, queries)
        norm(f"{block}.ffn_norm")
        matrix(f"{block}.ffn_gate", shape.ffn, shape.hidden)
        matrix(f"{block}.ffn_up", shape.ffn, shape.hidden)
        matrix(f"{block}.ffn_down", shape.hidden, shape.ffn)
    norm("output_norm")
    if not shape.tied:
        matrix("output", shape.vocab, shape.hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(path)
