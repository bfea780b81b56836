"""What the bodies of all attention operators share: standard operators from the projections to the output."""

import numpy as np
import onnx_ir as ir

from doge_export.graph.operators.function import BodyBuilder
from doge_export.graph.operators.schema import BodyOptions

__all__ = ["AttentionBody"]


class AttentionBody:
    """Adds nodes to `b`, whose formal inputs have the names of the operator's schema: query, key, value, cos,
    sin, q_norm, k_norm, dt_weight, dt_bias, A, past_key."""

    def __init__(self, b: BodyBuilder, options: BodyOptions) -> None:
        self._b, self._options = b, options
        self._heads, self._kv_heads = b.int_attribute("num_heads"), b.int_attribute("num_kv_heads")
        # Lengths come from inputs that all layers share: onnxruntime then computes the mask once for all.
        self.length: ir.Value = b.Squeeze(b.Shape(b.inputs["cos"], start=1, end=2))
        self.lowest = b.const(options.lowest, options.numpy)
        self.numpy = options.numpy

    def _split(self, name: str, count: ir.Value) -> ir.Value:
        b = self._b
        shape = b.Concat(b.const([0, 0]), b.Unsqueeze(count, b.const([0])), b.const([-1]), axis=0)
        result: ir.Value = b.Reshape(b.inputs[name], shape)
        return result

    def _prepare(self, name: str, count: ir.Value, weight: str) -> ir.Value:
        b = self._b
        states = b.Transpose(self._normalised(self._split(name, count), weight), perm=[0, 2, 1, 3])
        result: ir.Value = b.RotaryEmbedding(states, b.inputs["cos"], b.inputs["sin"])
        return result

    def _normalised(self, states: ir.Value, weight: str) -> ir.Value:
        b = self._b
        epsilon = b.attribute("epsilon", ir.AttributeType.FLOAT, "epsilon")
        result: ir.Value = b.RMSNormalization(states, b.inputs[weight], epsilon=epsilon, axis=-1)
        return result

    def _for_scores(self, bias: ir.Value) -> ir.Value:
        """Return the bias in a shape that can be added to scores [batch, kv_heads, group, sequence, keys]."""
        result: ir.Value = self._b.Unsqueeze(bias, self._b.const([2]))
        return result

    def query(self) -> ir.Value:
        """Return the query, normalised and rotated: [batch, heads, sequence, head_dim]."""
        return self._prepare("query", self._heads, "q_norm")

    def key(self) -> ir.Value:
        """Return the key, normalised and rotated: [batch, kv_heads, sequence, head_dim]."""
        return self._prepare("key", self._kv_heads, "k_norm")

    def value(self) -> ir.Value:
        """Return the value: [batch, kv_heads, sequence, head_dim]."""
        return self.as_projected("value")

    def as_projected(self, name: str) -> ir.Value:
        """Return keys or values, neither normalised nor rotated: [batch, kv_heads, sequence, head_dim]."""
        result: ir.Value = self._b.Transpose(self._split(name, self._kv_heads), perm=[0, 2, 1, 3])
        return result

    def key_weight(self, values: ir.Value) -> ir.Value:
        """Return dt [batch, kv_heads, n] of values [batch, kv_heads, n, head_dim]."""
        b, options, x = self._b, self._options, self._b.inputs
        flat = b.Reshape(b.Transpose(values, perm=[0, 2, 1, 3]), b.const([0, 0, -1]))
        parts = [flat, b.Transpose(x["dt_weight"], perm=[1, 0]), x["dt_bias"], x["A"]]
        # An error in the exponent is one of dt's size in the scores, and dt may be large: in float64
        # the rounding of the whole chain is that of the result alone.
        wide = options.float64 and options.dtype == ir.DataType.FLOAT
        if wide:
            parts = [b.Cast(part, to=ir.DataType.DOUBLE) for part in parts]
        flat, weight, bias, scale = parts
        soft = self._softplus(b.Add(b.MatMul(flat, weight), bias), keep_wide=wide)
        dt = b.Exp(b.Mul(scale, soft))
        if wide:
            dt = b.Cast(dt, to=options.dtype)
        result: ir.Value = b.Transpose(dt, perm=[0, 2, 1])
        return result

    def _softplus(self, x: ir.Value, keep_wide: bool) -> ir.Value:
        """softplus as torch computes it: log1p(exp(x)), and x itself above 20.

        onnxruntime's CPU Softplus and Log round differently in the last lanes of a row, so equal keys get
        unequal weights and the tie rule breaks. In float64 the result is the correctly rounded one, alike
        in every lane. Where float64 is not to be had, float32 takes operations that round alike in every
        lane, and half precision Softplus, which it rounds to few bits.
        """
        b, options = self._b, self._options
        if not options.float64:
            return self._softplus_in_steps(x) if options.dtype == ir.DataType.FLOAT else b.Softplus(x)
        wide = x if keep_wide else b.Cast(x, to=ir.DataType.DOUBLE)
        soft = b.Log(b.Add(b.Exp(wide), b.const(1.0, np.float64)))
        soft = b.Where(b.Greater(wide, b.const(20.0, np.float64)), wide, soft)
        result: ir.Value = soft if keep_wide else b.Cast(soft, to=options.dtype)
        return result

    def _softplus_in_steps(self, x: ir.Value) -> ir.Value:
        """max(x, 0) + log1p(z) with z = exp(-|x|) in float32. log1p(z) = 2 atanh(s) with s = z / (2 + z), at
        most 1/3, whose series is cut where it no longer reaches the last bit."""
        b = self._b

        def number(value: float) -> ir.Value:
            return b.const(value, np.float32)

        z = b.Exp(b.Neg(b.Abs(x)))
        s = b.Div(z, b.Add(z, number(2)))
        square = b.Mul(s, s)
        series = number(1 / 15)
        for odd in (13, 11, 9, 7, 5, 3, 1):
            series = b.Add(b.Mul(series, square), number(1 / odd))
        soft = b.Mul(b.Mul(s, number(2)), series)
        result: ir.Value = b.Add(b.Max(x, number(0)), soft)
        return result

    def keep_largest(self, ranked: ir.Value, order: ir.Value | None = None) -> ir.Value:
        """`ranked` [batch, kv_heads, sequence, keys] where an entry is among its row's keep_window_size
        largest, else finfo.min. Of equals the first is taken, or the first in `order`: int64 [batch,
        kv_heads, keys], the keys as they come.

        Rows no longer than the window keep everything: a branch spares them the sort, where branches are
        to be had.
        """
        b, options, lowest = self._b, self._options, self.lowest
        if options.window_open:
            return ranked
        window = b.int_attribute("keep_window_size")
        count = b.Squeeze(b.Shape(ranked, start=3, end=4))
        at = len(b.nodes)
        # Cut to the row in a branch too: where shapes are fixed, shape inference looks into every branch.
        k = b.Unsqueeze(b.Min(window, count), b.const([0]))
        if order is None:
            _, indices = b.TopK(ranked, k, axis=-1, outputs=2)
        else:
            by_position = b.Expand(b.Unsqueeze(order, b.const([2])), b.Shape(ranked))
            _, indices = b.TopK(b.GatherElements(ranked, by_position, axis=-1), k, axis=-1, outputs=2)
            indices = b.GatherElements(by_position, indices, axis=-1)
        blank = b.ConstantOfShape(b.Shape(ranked), value=ir.tensor(np.zeros(1, np.bool_)))
        chosen = b.ConstantOfShape(b.Shape(indices), value=ir.tensor(np.ones(1, np.bool_)))
        kept: ir.Value = b.Where(b.ScatterElements(blank, indices, chosen, axis=-1), ranked, lowest)
        if not options.branches:
            return kept
        sort = b.nodes[at:]
        sort_branch = b.branch("window_full", sort, kept)
        everything: ir.Value = b.Identity(ranked)
        keep_branch = b.branch("window_open", [b.nodes[-1]], everything)
        for value in (kept, everything):
            value.type = ir.TensorType(options.dtype)
        result: ir.Value = b.If(
            b.Greater(count, window),
            then_branch=sort_branch,
            else_branch=keep_branch,
        )
        return result

    def attend(self, query: ir.Value, keys: ir.Value, values: ir.Value, bias: ir.Value) -> ir.Value:
        """The output [batch, sequence, heads * head_dim]; bias [batch, kv_heads, sequence, keys]."""
        b, options = self._b, self._options
        # All query heads of a kv head together: [batch, kv_heads, group * sequence, head_dim]
        rows = b.Concat(b.const([0]), b.Unsqueeze(self._kv_heads, b.const([0])), b.const([-1]), axis=0)
        head_dim = b.Shape(b.inputs["past_key"], start=3, end=4)
        grouped = b.Reshape(query, b.Concat(rows, head_dim, axis=0))
        scale = b.float_attribute("scale")
        if options.dtype != ir.DataType.FLOAT:
            scale = b.Cast(scale, to=options.dtype)
        scores = b.Mul(b.MatMul(grouped, b.Transpose(keys, perm=[0, 1, 3, 2])), scale)
        keys_count = b.Shape(keys, start=2, end=3)
        length_1 = b.Unsqueeze(self.length, b.const([0]))
        scores = b.Reshape(scores, b.Concat(rows, length_1, keys_count, axis=0))
        scores = b.Add(scores, self._for_scores(bias))
        if options.dtype == ir.DataType.FLOAT:
            weights = b.Softmax(scores, axis=-1)
        else:
            weights = b.Cast(b.Softmax(b.Cast(scores, to=ir.DataType.FLOAT), axis=-1), to=options.dtype)
        weights = b.Reshape(weights, b.Concat(rows, keys_count, axis=0))
        output = b.MatMul(weights, values)
        heads_1 = b.Unsqueeze(self._heads, b.const([0]))
        output = b.Reshape(output, b.Concat(b.const([0]), heads_1, length_1, head_dim, axis=0))
        result: ir.Value = b.Reshape(b.Transpose(output, perm=[0, 2, 1, 3]), b.const([0, 0, -1]))
        return result
