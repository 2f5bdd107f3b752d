"""Bytes that ops take for themselves on a CPU, beside their inputs and results, and the sizes of parts that decide it.

The ops take those sizes from here, and tests measure the ops against these functions. They are one file apart from the
ops because plans of memory (`ideoflow.fitting`), which add them up, are made without importing torch.
"""

from __future__ import annotations

FLOAT = 4  # bytes of a float32

# `kernels`: entries at a time, 4 MB in float32, so that no float32 copy of a long stream is made. Fewer would stay in a
# nearer cache, but threads would meet more often, which is dear where cores are busy.
BLOCK = 2**20

# `cpu_attention`: used for heads of so many channels,
NARROWEST = 128
SMALLEST = 2**17  # and so many entries of a head's keys; below, the fused kernel is as fast (benchmarks.attention).
QUERIES = 1024  # at a time, so that the scores of a head take few megabytes

# `quantized_linear`: products in int8 have sums at a time, each in int32 and then in float32,
SUMS = 2**23
FEWEST = 64  # and tokens at a time, at least: torch's kernels want more than 16.


def norm_bytes(entries: int, itemsize: int) -> int:
    """`kernels.gate_norm_add`, and no less than `norm_scale`: in float32 both inputs and each token's modulation.

    The modulation is gathered in its own type first.
    """
    return min(BLOCK, entries) * (FLOAT if itemsize == FLOAT else 3 * FLOAT + itemsize)


def rotation_bytes(tokens: int, heads: int, head_dim: int, itemsize: int) -> int:
    """`kernels.norm_rotate`: in float32 both tables times the weight, the input, and what becomes of it.

    Where there are several blocks, those of the one before are still there when the next one's are made.
    """
    entries = tokens * heads * head_dim
    block, again = min(BLOCK, entries), entries > BLOCK
    copies, tables = (0, 1 + again) if itemsize == FLOAT else (2 + again, 1)
    return (block * copies + 2 * tables * block // heads) * FLOAT


def attention_bytes(length: int, head_dim: int, itemsize: int) -> int:
    """`cpu_attention.attend` over segments of so many tokens; 0 where it is not the faster way.

    Keys and values of one head; for some queries scores and their softmax; and that in the values' type or, where it
    is in that type, what it gives.
    """
    if head_dim < NARROWEST or length * head_dim < SMALLEST:
        return 0
    queries = min(QUERIES, length)
    last = queries * (head_dim if itemsize == FLOAT else length) * itemsize
    return length * head_dim * (FLOAT + itemsize) + 2 * queries * length * FLOAT + last


def int8_parts(tokens: int, rows: int) -> int:
    """In how many parts of the tokens a product in int8 is taken, so that its wide sums stay few."""
    return max(1, min(-(-tokens * rows // SUMS), tokens // FEWEST))


def int8_bytes(tokens: int, inputs: int, outputs: int) -> int:
    """`quantized_linear.int8_product`: the input in a byte, and of some tokens sums in int32, then in float32."""
    return tokens * inputs + outputs * tokens // int8_parts(tokens, outputs) * 2 * FLOAT


def expanded_bytes(inputs: int, outputs: int, itemsize: int) -> int:
    """A product by a quantized weight that is expanded to the input's type first."""
    return inputs * outputs * itemsize
