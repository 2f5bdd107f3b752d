"""The work of each part of the network, over any number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .sizes import Config, Implementation
from .work import ATTENTION, ELEMENTWISE, FEED_FORWARD, OUTPUT, QKV, Moved, Work, total

# Arithmetic operations for each element, as `vector_flops` counts them.
NORM_OPS = 4  # square, sum, times the root, times the gain
LAYER_NORM_OPS = 5  # the same with the mean subtracted, and no gain
SILU_OPS = 4
ROTATION_OPS = 3  # two products and a sum
SOFTMAX_OPS = 5  # scale, largest, difference, exp, sum


@dataclass(frozen=True)
class Counter:
    """Counts the parts of one network for one data type; all methods return a `Work`.

    Attributes:
        config: sizes.
        dtype: type of weights and activations.
        implementation: who computes it.
        peer: whether norms are those of diffusers, in six operations, rather than PyTorch's.
        device: see `Machine`.
    """

    config: Config
    dtype: str
    implementation: Implementation
    peer: bool
    device: str

    def passes(self, read: int, written: int, vector_flops: int = 0, dtype: str = "") -> Work:
        """Element-wise work."""
        dtype = dtype or self.dtype
        moved = (Moved("read", dtype, read), Moved("written", dtype, written))
        return Work(0, vector_flops, tuple(entry for entry in moved if entry.elements))

    def rows_of_table(self, rows: int) -> Work:
        """Write out a row of `hidden` channels for each of `rows` indices into a table that is too small to count."""
        return self.passes(rows, 0, dtype="int64") + self.passes(0, rows * self.config.hidden)

    def product(self, rows: int, inner: int, outer: int, bias: bool = False) -> Work:
        """A linear layer: (rows, inner) to (rows, outer)."""
        if rows == 0:
            return Work()
        weights = Moved("weights", self.dtype, inner * outer + bias * outer)
        return Work(2 * rows * inner * outer, 0, (weights,)) + self.passes(
            rows * inner, rows * outer, bias * rows * outer
        )

    def peer_norm(self, n: int) -> Work:
        """Diffusers' RMSNorm of n elements: each of its operations alone, those before the gain in float32."""
        if self.dtype == "float32":
            return self.passes(4 * n, 3 * n, NORM_OPS * n)  # square, mean, times the root, times the gain
        # to float32, square, mean, times the root (of the input as it came), back, times the gain
        return self.passes(3 * n, 2 * n, NORM_OPS * n) + self.passes(3 * n, 3 * n, dtype="float32")

    def norm(self, n: int) -> Work:
        """The RMS norm of a block over n elements, unfused."""
        if self.peer:
            return self.peer_norm(n)
        if self.device == "cuda":
            return self.passes(n, n, NORM_OPS * n)
        if self.dtype == "float32":
            return self.passes(4 * n, 3 * n, NORM_OPS * n)
        # to float32, square, mean, times the root, times the gain, back
        return self.passes(n, n, NORM_OPS * n) + self.passes(5 * n, 4 * n, dtype="float32")

    def rotation(self, tokens: int) -> Work:
        """Rotate the queries, or the keys, of the tokens; unfused."""
        n, table = tokens * self.config.hidden, tokens * self.config.attention_head_dim
        swap = self.passes(n, n)
        if self.peer:  # half of them negated first; ours keeps the sign in the table
            swap += self.passes(n // 2, n // 2, n // 2)
        products = self.passes(2 * (n + table), 2 * n, 2 * n)
        return swap + products + self.passes(2 * n, n, n)

    # The kernels for CPUs, taken without a gradient: in float32, into it and out of it where the stream is narrower.

    def cpu_factors(self, tokens: int, gathered: bool) -> Work:
        """Rows of modulation for the tokens, times the gain; nothing to count where all tokens share one row."""
        n = tokens * self.config.hidden
        if not gathered:
            return Work()
        return self.rows_of_table(tokens) + self._widen(n) + self.passes(n, n, n, "float32")

    def cpu_scaled(self, tokens: int, gathered: bool) -> Work:
        """Norm and scale."""
        n = tokens * self.config.hidden
        normed = self._cpu_norm(n, tokens)
        scaled = self.passes((2 if gathered else 1) * n, n, n, "float32")
        return self._widen(n) + normed + self.cpu_factors(tokens, gathered) + scaled + self._cast(n)

    def cpu_gated(self, tokens: int, gathered: bool) -> Work:
        """Norm, gate and sum."""
        n = tokens * self.config.hidden
        return self.cpu_scaled(tokens, gathered) + self._widen(n) + self.passes(n, 0, n, "float32")

    def cpu_rotation(self, tokens: int) -> Work:
        """Norms and rotation of the queries, or the keys, of the tokens: the gain goes into the tables."""
        n, table = tokens * self.config.hidden, tokens * self.config.attention_head_dim
        tables = self.passes(2 * table, 0) + self.passes(0, 2 * table, 2 * table, "float32")
        rotated = self.passes(3 * n + 2 * table, 2 * n, ROTATION_OPS * n, "float32")
        normed = self._cpu_norm(n, tokens * self.config.num_attention_heads)
        return self._widen(n) + tables + rotated + normed + self._cast(n)

    def _cpu_norm(self, n: int, rows: int) -> Work:
        """The sum of squares of n elements, and times the root; five passes make a root of each row's sum."""
        return self.passes(2 * n + 5 * rows, n + 5 * rows, NORM_OPS * n, "float32")

    def text_projection(self, rows: int) -> Work:
        """Norm of the features and their projection; the norm is diffusers' on both sides."""
        width, hidden = self.config.llm_features_dim, self.config.hidden
        return self.peer_norm(rows * width) + self.product(rows, width, hidden, bias=True)

    def time(self, times: int) -> Work:
        """Embedding of the times and the modulations of all layers, a row for each time."""
        hidden, adaln = self.config.hidden, self.config.adaln_dim
        embed = self.product(times, hidden, hidden, bias=True) * 2 + self.product(times, hidden, adaln, bias=True)
        activations = self.passes(times * (hidden + 2 * adaln), times * (hidden + 2 * adaln), SILU_OPS * times * hidden)
        block = self.product(times, adaln, 4 * hidden, bias=True) + self.passes(
            4 * times * hidden, 4 * times * hidden, 4 * times * hidden
        )
        final = self.product(times, adaln, hidden, bias=True) + self.passes(times * hidden, times * hidden)
        return embed + activations + block * self.config.num_layers + final

    def attention(self, queries: int, keys: int, masked: bool = False) -> Work:
        """Attention of one segment."""
        hidden, scores = self.config.hidden, queries * keys
        work = Work(4 * scores * hidden, SOFTMAX_OPS * self.config.num_attention_heads * scores)
        work += self.passes((queries + 2 * keys) * hidden, queries * hidden)
        if masked:  # every layer makes numbers of the mask's booleans; the kernel adds those, once for all heads
            made = self.passes(scores, 0, dtype="bool") + self.passes(0, scores)
            work += made + self.passes(scores, 0, self.config.num_attention_heads * scores)
        return work

    def elementwise(self, queries: int, keys: int, gathered: bool) -> Work:
        """Norms, gates, rotation and SwiGLU of one block.

        Args:
            queries: tokens whose output is computed.
            keys: tokens of the stream; more than `queries` where a last block leaves some out.
            gathered: whether each token takes the modulation of its own time, rather than one that all share.
        """
        config = self.config
        q, k, fed = queries * config.hidden, keys * config.hidden, queries * config.intermediate_size
        # The stream, its normed form and the rotary tables, at the tokens that go on.
        chosen = 2 * (q + queries * config.attention_head_dim) if queries < keys else 0
        if self.implementation.fused:
            joined = self.peer or self.implementation.joined
            table = (keys if joined and queries == keys else queries + keys) * config.attention_head_dim
            operations = NORM_OPS * (4 * q + 2 * k) + (SILU_OPS + 1) * fed + ROTATION_OPS * (q + k) + k + 5 * q
            # norm, gate, sum, norm, scale
            middle = self.passes(2 * q, q) + self.read(q, q, 0 if joined else q)
            chains = (
                self.passes(q + k + 2 * table, q + k),  # norms of queries and keys, rotation
                middle,
                self.read(fed, fed, 2 * fed),  # SwiGLU
                self.rounding(q),  # of what attention gives
            )
            if self.peer or not self.implementation.joined:  # norm, scale; norm, gate, sum: see `between`
                chains += (self.read(k, k, k), self.passes(2 * q, q))
            return total(chains) + self.passes(chosen, chosen, operations)
        if self.device == "cpu" and not self.peer:
            norms = self.cpu_scaled(keys, gathered) + self.cpu_scaled(queries, gathered)
            sums = self.cpu_gated(queries, gathered) * 2
            rotations = self.cpu_rotation(queries) + self.cpu_rotation(keys)
            swiglu = self.passes(3 * fed, 2 * fed, (SILU_OPS + 1) * fed)
            return norms + sums + rotations + swiglu + self.passes(chosen, chosen)
        modulated = k + 3 * q  # two scales and two gates
        gathers = self.rows_of_table(keys + 3 * queries) if gathered else Work()
        norms = self.norm(q) * 4 + self.norm(k) * 2
        modulations = self.passes((2 if gathered else 1) * modulated, modulated, modulated)
        sums = self.passes(4 * q, 2 * q, 2 * q)
        swiglu = self.passes(3 * fed, 2 * fed, (SILU_OPS + 1) * fed)
        rotations = self.rotation(queries) + self.rotation(keys)
        return gathers + norms + modulations + sums + swiglu + rotations + self.passes(chosen, chosen)

    def read(self, n: int, rounded: int, taken: int) -> Work:
        """A kernel that takes so many elements and gives n to be read by a product, of which so many are rounded."""
        if self.implementation.rounded != "kernels":
            return self.passes(taken, n) + (self.rounding(rounded) if self.implementation.rounded else Work())
        return self.passes(taken, 0) + self.passes(0, n, dtype="float8")

    def rounding(self, n: int) -> Work:
        """Rounding of n elements to float8 by itself; the scales, one for each token, are not counted."""
        if self.implementation.rounded is None:
            return Work()
        if self.implementation.rounded == "kernels":
            return self.passes(n, 0) + self.passes(0, n, dtype="float8")
        # magnitudes, the largest, times the scale, cast
        return self.passes(4 * n, 2 * n) + self.passes(0, n, dtype="float8")

    def between(self, whole: Sequence[tuple[int, int]], read: Sequence[tuple[int, int]], layers: int) -> Work:
        """What joined kernels do where a block ends and the next begins, before the first and after the last."""
        if not self.implementation.joined:
            return Work()
        tokens, wanted = (sum(queries for queries, _ in segments) * self.config.hidden for segments in (whole, read))
        joint = self.passes(2 * tokens, tokens) + self.read(tokens, tokens, 0)  # norm, gate, sum, norm, scale
        return joint * (layers - 1) + self.read(tokens, tokens, tokens) + self.passes(2 * wanted, wanted)

    def final(self, tokens: int, stream: int, gathered: bool) -> Work:
        """The final layer over `tokens`, which are taken out of a stream if that has more."""
        n = tokens * self.config.hidden
        taken = self.passes(n, n) if tokens < stream else Work()
        scales = self.rows_of_table(tokens) if gathered else Work()
        scaled = self.passes(n, n, LAYER_NORM_OPS * n) + self.passes((2 if gathered else 1) * n, n, n)
        return taken + scales + scaled + self.product(tokens, self.config.hidden, self.config.in_channels, bias=True)

    def embedding(self, tokens: int, image: int) -> Work:
        """Project the latents, add the row of the role, and put text and image in order."""
        hidden, channels = self.config.hidden, self.config.in_channels
        if self.peer:  # over all tokens; masked before and after, then two sums and a row looked up for each token
            n, latents = tokens * hidden, tokens * channels
            masks = self.passes(latents + n, latents + n, latents + n)
            sums = self.passes(4 * n, 2 * n, 2 * n) + self.rows_of_table(tokens)
            return masks + self.product(tokens, channels, hidden, bias=True) + sums
        n = image * hidden
        project = self.product(image, channels, hidden, bias=True) + self.passes(n, n, n)
        return project + self.passes(2 * tokens * hidden, 2 * tokens * hidden)  # joined, put in order

    def our_tables(self, tokens: int) -> Work:
        """Cosines and sines of the tokens' angles, as `rotary_tables` makes them."""
        half = tokens * self.config.attention_head_dim // 2
        positions = self.passes(half, half, dtype="int64")
        angles = self.passes(5 * half, 5 * half, 4 * half, "float32")  # cast, product, cos, sin, minus sin
        joined = self.passes(4 * half, 4 * half, dtype="float32")
        return positions + angles + joined + self._cast(4 * half)

    def peer_tables(self, rows: int, length: int) -> Work:
        """The same of the peer, whose angles are a product of matrices for all three axes, and its mask."""
        half = rows * length * self.config.attention_head_dim // 2
        angles = Work(2 * 3 * half) + self.passes(3 * rows * length, 3 * half, dtype="float32")
        chosen = self.passes(half, half, dtype="float32")
        tables = self.passes(6 * half, 6 * half, 4 * half, "float32") + self._cast(4 * half)  # joined, cos, sin
        mask = self.passes(2 * rows * length, 0, dtype="int64") + self.passes(0, rows * length**2, dtype="bool")
        return angles + chosen + tables + mask

    def _widen(self, n: int) -> Work:
        """From the stream's type to float32, if that is another."""
        if self.dtype == "float32":
            return Work()
        return self.passes(n, 0) + self.passes(0, n, dtype="float32")

    def _cast(self, n: int) -> Work:
        """From float32 to the stream's type, if that is another."""
        if self.dtype == "float32":
            return Work()
        return self.passes(n, 0, dtype="float32") + self.passes(0, n)

    def blocks(self, segments: Sequence[tuple[int, int]], layers: int, gathered: bool, masked: bool) -> dict[str, Work]:
        """Parts of `layers` blocks over segments, each (tokens whose output is computed, all tokens)."""
        hidden, fed = self.config.hidden, self.config.intermediate_size
        queries, keys = (sum(column) for column in zip(*segments, strict=True))
        into, out = self.product(queries, hidden, fed), self.product(queries, fed, hidden)
        parts = {
            QKV: self.product(queries, hidden, hidden) + self.product(keys, hidden, hidden) * 2,
            ATTENTION: total([self.attention(*segment, masked) for segment in segments]),
            OUTPUT: self.product(queries, hidden, hidden),
            FEED_FORWARD: into * 2 + out,
            ELEMENTWISE: self.elementwise(queries, keys, gathered),
        }
        return {name: work * layers for name, work in parts.items()}
