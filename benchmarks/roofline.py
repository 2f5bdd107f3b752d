"""What one guided step costs before anything is timed: FLOPs and bytes of each part, and the time that they bound.

For a transformer's sizes and a set of pictures, this counts the work of one step of both transformers by part, as five
implementations do it (text encoder, autoencoder and Euler update are not part of it):

  diffusers         the peer as it comes: text padded to 2048 tokens, a mask of all tokens by all tokens, the text
                    projection and the rotary tables at every step, for padding and image tokens too. Pictures of equal
                    size share a call; the unconditional transformer runs whatever the guidance.
  ~ trimmed         the same with `max_sequence_length` set to the longest caption of the call.
  ~ trimmed, fused  the same with each block compiled.
  ideoflow          segments only, all pictures in one stream for each transformer; text projection and rotary tables
                    once for each request; the last block computed only where its output is read, at image tokens.
  ~ fused           the same with each block compiled, or with the Triton kernels on a GPU.

Fused: one kernel for each chain of element-wise work between two products, which reads its inputs once and writes its
result once. Otherwise each operation of PyTorch reads and writes on its own.

Time: a part of one call takes as long as its matrix products at the machine's matrix rate, or as long as its bytes at
the memory's bandwidth, whichever is longer; parts follow one another. So it is a bound from below: kernels reach a part
of both rates. The machines' rates are their vendors' figures for dense products; headlines with sparsity are twice as
high. Bytes are those of tensors that an operation must read or write, each once: caches neither spare nor add any.
Operations outside products are counted (`vector`: one for each arithmetic operation and each exp, tanh and root; five
for each score of a softmax) but bound nothing, which holds on these GPUs and may not on a CPU. Left out: what does not
grow with tokens, times or weights, and copies that attention kernels make for themselves.

examples:
  python -m benchmarks.roofline                                    the full model, 1024 x 1024 pixels, 400 text tokens
  python -m benchmarks.roofline --machine h100 --sample 150,32,48  another picture: 150 text tokens, 512 x 768 pixels
  python -m benchmarks.roofline --sample 400,64,64 --sample 90,32,32 --sample 200,64,48,unguided
                                                                   three pictures that take a step together
  python -m benchmarks.roofline --tflops 120 --bandwidth 0.9       a machine of your own, in TFLOP/s and TB/s
  python -m benchmarks.roofline --measure --dtype float32          this machine, measured first (some seconds)
  python -m benchmarks.roofline --config transformer/config.json   another transformer
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks._measure import write

BYTES = {"float32": 4, "bfloat16": 2, "bool": 1, "int64": 8}
PEER_TEXT = 2048  # `max_sequence_length` of the peer's pipeline unless set

STEP, REQUEST = "step", "request"
EMBEDDING = "embedding"
TIME = "time and modulations"
QKV = "qkv product"
ATTENTION = "attention"
OUTPUT = "output product"
FEED_FORWARD = "feed-forward"
ELEMENTWISE = "element-wise"
FINAL = "final layer"
TEXT = "text projection"
TABLES = "rotary tables, mask"
PARTS = (EMBEDDING, TIME, QKV, ATTENTION, OUTPUT, FEED_FORWARD, ELEMENTWISE, FINAL, TEXT, TABLES)

# Arithmetic operations for each element, as `vector_flops` counts them.
NORM_OPS = 4  # square, sum, times the root, times the gain
LAYER_NORM_OPS = 5  # the same with the mean subtracted, and no gain
SILU_OPS = 4
ROTATION_OPS = 3  # two products and a sum
SOFTMAX_OPS = 5  # scale, largest, difference, exp, sum


@dataclass(frozen=True)
class Config:
    """Sizes of a transformer, named as in its configuration; the defaults are those of the published weights."""

    in_channels: int = 128
    num_layers: int = 34
    attention_head_dim: int = 256
    num_attention_heads: int = 18
    intermediate_size: int = 12288
    adaln_dim: int = 512
    llm_features_dim: int = 53248

    def __post_init__(self) -> None:
        for name, size in asdict(self).items():
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"`{name}` must be a positive integer, got {size!r}.")

    @property
    def hidden(self) -> int:
        """Channels of the stream."""
        return self.attention_head_dim * self.num_attention_heads

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Config:
        """The sizes in a transformer's configuration; what is not a size is passed over, what is missing is default."""
        if not isinstance(values, Mapping):
            raise ValueError(f"a configuration maps names to sizes, got {type(values).__name__}.")
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})


@dataclass(frozen=True)
class Sample:
    """One picture in the making: text tokens of its caption, rows and columns of image tokens (of 16 x 16 pixels)."""

    text: int
    rows: int
    cols: int
    guided: bool = True

    def __post_init__(self) -> None:
        if self.text < 0 or self.rows < 1 or self.cols < 1:
            raise ValueError(f"{self}: `text` must not be negative, `rows` and `cols` must be positive.")

    @property
    def image(self) -> int:
        """Image tokens."""
        return self.rows * self.cols


@dataclass(frozen=True)
class Implementation:
    """A way to compute the same velocities.

    Attributes:
        name: how tables call it.
        padded_text: text tokens that the peer pads to, 0 for the longest caption of a call; None for ours, which does
            not pad.
        fused: whether each chain of element-wise work of a block is one kernel.
        last_block_image_only: whether the last block computes queries and all that follows at image tokens only.
    """

    name: str
    padded_text: int | None = None
    fused: bool = False
    last_block_image_only: bool = False


IMPLEMENTATIONS = (
    Implementation("diffusers", padded_text=PEER_TEXT),
    Implementation("~ trimmed", padded_text=0),
    Implementation("~ trimmed, fused", padded_text=0, fused=True),
    Implementation("ideoflow", last_block_image_only=True),
    Implementation("~ fused", fused=True, last_block_image_only=True),
)
BASE = "ideoflow"  # what the others are compared with


@dataclass(frozen=True)
class Moved:
    """Elements of one type that pass between memory and processor."""

    kind: Literal["weights", "read", "written"]
    dtype: str
    elements: int

    @property
    def bytes(self) -> int:
        return self.elements * BYTES[self.dtype]


@dataclass(frozen=True)
class Work:
    """Operations and traffic.

    Attributes:
        matrix_flops: of matrix products and attention, 2 for a multiplication and its addition.
        vector_flops: all others.
        moved: weights read, activations read, activations written.
    """

    matrix_flops: int = 0
    vector_flops: int = 0
    moved: tuple[Moved, ...] = ()

    def __add__(self, other: Work) -> Work:
        return Work(
            self.matrix_flops + other.matrix_flops, self.vector_flops + other.vector_flops, self.moved + other.moved
        )

    def __mul__(self, times: int) -> Work:
        moved = tuple(replace(entry, elements=times * entry.elements) for entry in self.moved)
        return Work(times * self.matrix_flops, times * self.vector_flops, moved)

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.moved)

    def bytes_by_type(self) -> dict[str, dict[str, int]]:
        """Bytes by kind (weights, read, written), then by data type."""
        table: dict[str, dict[str, int]] = {"weights": {}, "read": {}, "written": {}}
        for entry in self.moved:
            table[entry.kind][entry.dtype] = table[entry.kind].get(entry.dtype, 0) + entry.bytes
        return table


def total(works: Sequence[Work]) -> Work:
    """The sum of several works."""
    return reduce(add, works, Work())


@dataclass(frozen=True)
class Part:
    """The work of one part of the network in one call of a transformer.

    Attributes:
        name: one of `PARTS`.
        call: the call that it belongs to: parts of different calls do not overlap.
        when: at each step, or once for a request.
        work: the work.
    """

    name: str
    call: str
    when: str
    work: Work


@dataclass(frozen=True)
class Machine:
    """What bounds a step.

    Attributes:
        name: how tables call it.
        matrix: FLOP/s of dense matrix products, by data type.
        bandwidth: bytes/s of the memory that holds weights and activations.
        device: "cuda" or "cpu": PyTorch has an RMS norm in one kernel for the first only.
        source: where the figures come from.
    """

    name: str
    matrix: dict[str, float]
    bandwidth: float
    device: str = "cuda"
    source: str = "given on the command line"


# Dense figures: vendors' headlines count structured sparsity and are twice as high.
MACHINES = {
    "h200": Machine("H200 SXM", {"bfloat16": 989.5e12}, 4.8e12, source="NVIDIA H200 data sheet, dense"),
    "h100": Machine("H100 SXM", {"bfloat16": 989.5e12}, 3.35e12, source="NVIDIA H100 data sheet, dense"),
    "rtx4090": Machine(
        "RTX 4090",
        {"bfloat16": 165.2e12},
        1.008e12,
        source="NVIDIA Ada architecture paper, dense, float32 accumulation",
    ),
    "rtx3090": Machine(
        "RTX 3090",
        {"bfloat16": 71e12},
        0.936e12,
        source="NVIDIA GA102 architecture paper, dense, float32 accumulation",
    ),
}


@dataclass(frozen=True)
class Counter:
    """Counts the parts of one network for one data type; all methods return a `Work`.

    Attributes:
        config: sizes.
        dtype: type of weights and activations.
        fused: see `Implementation`.
        peer: whether norms are those of diffusers, in six operations, rather than PyTorch's.
        device: see `Machine`.
    """

    config: Config
    dtype: str
    fused: bool
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
        chosen = 2 * q if queries < keys else 0  # the stream and its normed form, at the tokens that go on
        if self.fused:
            table = (queries + keys) * config.attention_head_dim
            operations = NORM_OPS * (4 * q + 2 * k) + (SILU_OPS + 1) * fed + ROTATION_OPS * (q + k) + k + 5 * q
            chains = (
                self.passes(k, k),  # norm, scale
                self.passes(q + k + 2 * table, q + k),  # norms of queries and keys, rotation
                self.passes(2 * q, 2 * q),  # norm, gate, sum, norm, scale
                self.passes(2 * fed, fed),  # SwiGLU
                self.passes(2 * q, q),  # norm, gate, sum
            )
            return total(chains) + self.passes(chosen, chosen, operations)
        modulated = k + 3 * q  # two scales and two gates
        gathers = self.rows_of_table(keys + 3 * queries) if gathered else Work()
        norms = self.norm(q) * 4 + self.norm(k) * 2
        modulations = self.passes((2 if gathered else 1) * modulated, modulated, modulated)
        sums = self.passes(4 * q, 2 * q, 2 * q)
        swiglu = self.passes(3 * fed, 2 * fed, (SILU_OPS + 1) * fed)
        rotations = self.rotation(queries) + self.rotation(keys)
        return gathers + norms + modulations + sums + swiglu + rotations + self.passes(chosen, chosen)

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


def count(
    config: Config, samples: Sequence[Sample], implementation: Implementation, dtype: str, device: str = "cuda"
) -> list[Part]:
    """The work of one step of all samples, and what is done once for each.

    Args:
        config: sizes of both transformers.
        samples: the pictures that take the step together.
        implementation: who computes it.
        dtype: "float32" or "bfloat16", of weights and activations.
        device: "cuda" or "cpu", see `Machine`.

    Raises:
        ValueError: no sample, or a caption that the peer does not take.
    """
    if not samples:
        raise ValueError("`samples` is empty: give at least one.")
    peer = implementation.padded_text is not None
    counter = Counter(config, dtype, implementation.fused, peer, device)
    return _count_peer(counter, samples, implementation) if peer else _count_ours(counter, samples, implementation)


def _count_ours(counter: Counter, samples: Sequence[Sample], implementation: Implementation) -> list[Part]:
    parts = []
    branches = {"conditional": [(s, s.text) for s in samples], "unconditional": [(s, 0) for s in samples if s.guided]}
    for call, branch in branches.items():
        if not branch:
            continue
        whole = [(s.image + text, s.image + text) for s, text in branch]
        read = [(s.image, s.image + text) for s, text in branch] if implementation.last_block_image_only else whole
        gathered = len(branch) > 1
        tokens, image = sum(keys for _, keys in whole), sum(s.image for s, _ in branch)
        works = {
            EMBEDDING: counter.embedding(tokens, image),
            TIME: counter.time(len(branch)),
            FINAL: counter.final(image, sum(queries for queries, _ in read), gathered),
        }
        before = counter.blocks(whole, counter.config.num_layers - 1, gathered, masked=False)
        last = counter.blocks(read, 1, gathered, masked=False)
        works |= {name: before[name] + last[name] for name in before}
        parts += [Part(name, call, STEP, work) for name, work in works.items()]
        for i, (s, text) in enumerate(branch):
            call_once, embedded = f"{call}, request {i}", text * counter.config.hidden
            row_added = counter.passes(embedded, embedded, embedded)
            once = {TEXT: counter.text_projection(text) + row_added, TABLES: counter.our_tables(s.image + text)}
            parts += [Part(name, call_once, REQUEST, work) for name, work in once.items()]
    return parts


def _count_peer(counter: Counter, samples: Sequence[Sample], implementation: Implementation) -> list[Part]:
    parts = []
    longest = max(s.text for s in samples)
    if implementation.padded_text and longest > implementation.padded_text:
        raise ValueError(f"a caption of {longest} tokens is longer than the {implementation.padded_text} padded to.")
    for rows, cols in dict.fromkeys((s.rows, s.cols) for s in samples):
        batch = [s for s in samples if (s.rows, s.cols) == (rows, cols)]
        text = implementation.padded_text or max(s.text for s in batch)
        for call, length in (("conditional", text + rows * cols), ("unconditional", rows * cols)):
            tokens, features = len(batch) * length, len(batch) * length * counter.config.llm_features_dim
            projected = len(batch) * length * counter.config.hidden
            masks = counter.passes(features + projected, features + projected, features + projected)
            works = {
                EMBEDDING: counter.embedding(tokens, tokens),
                TIME: counter.time(len(batch)),
                FINAL: counter.final(tokens, tokens, gathered=False),
                TEXT: counter.text_projection(tokens) + masks,
                TABLES: counter.peer_tables(len(batch), length),
            }
            works |= counter.blocks([(length, length)] * len(batch), counter.config.num_layers, False, masked=True)
            parts += [Part(name, f"{call}, {rows} x {cols}", STEP, work) for name, work in works.items()]
    return parts


def work_of(parts: Sequence[Part], name: str | None = None, when: str | None = STEP) -> Work:
    """The sum of the parts of this name (None for all) at this time (None for all)."""
    return total([p.work for p in parts if name in (None, p.name) and when in (None, p.when)])


def seconds(parts: Sequence[Part], machine: Machine, dtype: str, name: str | None = None, when: str = STEP) -> float:
    """The least time that parts take, those of this name or all: each the longer of products and traffic."""
    chosen = [p.work for p in parts if name in (None, p.name) and p.when == when]
    return sum(max(w.matrix_flops / machine.matrix[dtype], w.bytes / machine.bandwidth) for w in chosen)


def measure(config: Config, rounds: int = 5) -> Machine:
    """Rates of the present machine: products of the sizes of the config, and copies of a large tensor."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows, copied = (4096, 2**31) if device == "cuda" else (512, 2**28)
    hidden, fed = config.hidden, config.intermediate_size
    matrix = {}
    for dtype in (torch.float32, torch.bfloat16):
        elapsed = 0.0
        for inner, outer in ((hidden, hidden), (hidden, fed), (fed, hidden)):
            x = torch.randn(rows, inner, device=device).to(dtype)
            weight = torch.randn(outer, inner, device=device).to(dtype)
            elapsed += _median_seconds(lambda x=x, weight=weight: torch.nn.functional.linear(x, weight), device, rounds)
        flops = 2 * rows * hidden * (hidden + 2 * fed)
        matrix[str(dtype).removeprefix("torch.")] = flops / elapsed
    source, target = (torch.ones(copied, dtype=torch.uint8, device=device) for _ in range(2))
    bandwidth = 2 * copied / _median_seconds(lambda: target.copy_(source), device, rounds)
    name = torch.cuda.get_device_name() if device == "cuda" else f"this machine, {torch.get_num_threads()} threads"
    how = f"measured: products of {rows} rows at the sizes of the config, copies of {copied >> 20} MiB"
    return Machine(name, matrix, bandwidth, device, f"{how}, torch {torch.__version__}")


def _median_seconds(call: Callable[[], object], device: str, rounds: int) -> float:
    taken = []
    for number in range(rounds + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        if number:  # the first one warms up
            taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def predict(parts: Sequence[Part], machine: Machine, dtype: str, steps: int) -> dict[str, Any]:
    """Times on a machine in seconds: of a step by part, of what is done once, and of all `steps`."""
    step, once = (seconds(parts, machine, dtype, when=when) for when in (STEP, REQUEST))
    by_part = {name: seconds(parts, machine, dtype, name) for name in PARTS}
    return {
        "step_seconds": step,
        "once_seconds": once,
        "all_steps_seconds": once + steps * step,
        "parts": {name: {"seconds": value, "share": value / step} for name, value in by_part.items()},
    }


def report(
    config: Config, samples: Sequence[Sample], machines: Sequence[Machine], dtype: str, steps: int
) -> dict[str, Any]:
    """Counts of all implementations and their times on all machines, ready to be written as JSON."""
    counted = {}
    for implementation in IMPLEMENTATIONS:
        parts = {
            device: count(config, samples, implementation, dtype, device)
            for device in dict.fromkeys(machine.device for machine in machines)
        }
        counted[implementation.name] = {
            "options": asdict(implementation),
            "work": {
                device: {
                    when: {name: _figures(work_of(of_device, name, when)) for name in PARTS}
                    | {"total": _figures(work_of(of_device, None, when))}
                    for when in (STEP, REQUEST)
                }
                for device, of_device in parts.items()
            },
            "time": {machine.name: predict(parts[machine.device], machine, dtype, steps) for machine in machines},
        }
    return {
        "benchmark": "roofline",
        "config": asdict(config),
        "samples": [asdict(sample) for sample in samples],
        "dtype": dtype,
        "steps": steps,
        "machines": [asdict(machine) for machine in machines],
        "implementations": counted,
    }


def _figures(work: Work) -> dict[str, Any]:
    figures = {"matrix_flops": work.matrix_flops, "vector_flops": work.vector_flops, "bytes": work.bytes_by_type()}
    return figures | {"total_bytes": work.bytes}


def show(figures: Mapping[str, Any]) -> str:
    """The tables of a report."""
    sides = figures["implementations"]
    lines = [
        "transformer  " + ", ".join(f"{name} {value}" for name, value in figures["config"].items()),
        "pictures     "
        + "; ".join(
            f"{s['text']} text tokens, {s['rows']} x {s['cols']} image tokens" + ("" if s["guided"] else ", unguided")
            for s in figures["samples"]
        ),
    ]
    for device in dict.fromkeys(machine["device"] for machine in figures["machines"]):
        work = {name: side["work"][device] for name, side in sides.items()}
        note = "" if device == "cuda" else " (as PyTorch computes norms on a CPU)"
        lines += ["", f"one step in {figures['dtype']}: TFLOP of products | GB read and written{note}"]
        lines.append(_row("", work))
        for name in (*PARTS, "total"):
            lines.append(_row(name, [_amounts(side[STEP][name]) for side in work.values()]))
        lines.append(_row("once, all requests", [_amounts(side[REQUEST]["total"]) for side in work.values()]))
        for kind in ("weights", "read", "written"):
            moved = [sum(side[STEP]["total"]["bytes"][kind].values()) for side in work.values()]
            lines.append(_row(f"of GB: {kind}", [f"{value / 1e9:.1f}" for value in moved]))
        vector = [side[STEP]["total"]["vector_flops"] for side in work.values()]
        lines.append(_row("vector TFLOP", [f"{value / 1e12:.2f}" for value in vector]))
    for machine in figures["machines"]:
        times = [side["time"][machine["name"]] for side in sides.values()]
        rate, bandwidth = machine["matrix"][figures["dtype"]] / 1e12, machine["bandwidth"] / 1e12
        lines += ["", f"{machine['name']}: {rate:.4g} TFLOP/s, {bandwidth:.4g} TB/s ({machine['source']})"]
        lines.append(_row("ms of a step | share", sides))
        for name in PARTS:
            cells = [f"{1e3 * t['parts'][name]['seconds']:.2f} {t['parts'][name]['share']:5.1%}" for t in times]
            lines.append(_row(name, cells))
        lines.append(_row("step", [f"{1e3 * t['step_seconds']:.1f}       " for t in times]))
        ours = sides[BASE]["time"][machine["name"]]["step_seconds"]
        lines.append(_row(f"times {BASE}", [f"{t['step_seconds'] / ours:.3f}       " for t in times]))
        lines.append(_row("once, ms", [f"{1e3 * t['once_seconds']:.1f}       " for t in times]))
        lines.append(_row(f"{figures['steps']} steps, s", [f"{t['all_steps_seconds']:.2f}       " for t in times]))
    return "\n".join(lines)


def _amounts(figures: Mapping[str, Any]) -> str:
    return f"{figures['matrix_flops'] / 1e12:.3f} {figures['total_bytes'] / 1e9:8.1f}"


def _row(name: str, cells: Sequence[str] | Mapping[str, Any]) -> str:
    return f"{name:21}" + "".join(f"{cell:>18}" for cell in cells)


def parse_sample(text: str) -> Sample:
    """`TEXT,ROWS,COLS` or `TEXT,ROWS,COLS,unguided`."""
    head, *rest = text.split(",")
    guided = rest[-1:] != ["unguided"]
    try:
        tokens, (rows, cols) = int(head), map(int, rest if guided else rest[:-1])
        return Sample(tokens, rows, cols, guided)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not TEXT,ROWS,COLS or TEXT,ROWS,COLS,unguided: text tokens (0 or more), then rows and columns"
            " of image tokens, a side of the picture in pixels divided by 16 (1 or more); such as 400,64,64."
        ) from error


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; `machines` of the result holds those to predict for, unless this one is to be measured."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.roofline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, help="a transformer's config.json; the published sizes unless given")
    parser.add_argument(
        "--sample",
        type=parse_sample,
        action="append",
        metavar="TEXT,ROWS,COLS[,unguided]",
        help="a picture: text tokens, then sides in image tokens (pixels / 16); give several for one step of all of"
        " them; 400,64,64 unless given",
    )
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="weights and activations")
    parser.add_argument("--steps", type=int, default=48, help="steps of a picture (default: %(default)s)")
    parser.add_argument(
        "--machine",
        nargs="+",
        choices=list(MACHINES),
        help="machines with their vendors' dense bfloat16 figures; all of them unless given",
    )
    parser.add_argument("--tflops", type=float, help="matrix rate of your machine in TFLOP/s; needs --bandwidth")
    parser.add_argument("--bandwidth", type=float, help="memory bandwidth of your machine in TB/s; needs --tflops")
    parser.add_argument("--measure", action="store_true", help="measure this machine's rates and use those")
    parser.add_argument("--out", type=Path, help="also write counts, by part and data type, and times as JSON")
    options = parser.parse_args(arguments)
    options.sample = options.sample or [Sample(400, 64, 64)]
    given = options.tflops is not None or options.bandwidth is not None
    if given and None in (options.tflops, options.bandwidth):
        parser.error("--tflops and --bandwidth describe one machine: give both")
    if given and min(options.tflops, options.bandwidth) <= 0:
        parser.error("--tflops and --bandwidth must be positive")
    if given + options.measure + bool(options.machine) > 1:
        parser.error("choose one: --machine, --measure, or --tflops with --bandwidth")
    if options.steps < 1:
        parser.error("--steps must be at least 1")
    if max(sample.text for sample in options.sample) > PEER_TEXT:
        parser.error(f"the peer takes captions of up to {PEER_TEXT} tokens")
    if given:
        yours = Machine("your machine", {options.dtype: options.tflops * 1e12}, options.bandwidth * 1e12)
        options.machines = [yours]
    elif options.dtype != "bfloat16" and not options.measure:
        parser.error("the machines' figures are for bfloat16; for float32 use --measure, or --tflops and --bandwidth")
    else:
        options.machines = [MACHINES[name] for name in options.machine or MACHINES]
    try:
        options.config = Config.of(json.loads(options.config.read_text())) if options.config else Config()
    except (OSError, ValueError) as error:
        parser.error(f"--config: {error}")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Count, predict, print and write."""
    options = parse(arguments)
    machines = [measure(options.config)] if options.measure else options.machines
    figures = report(options.config, options.sample, machines, options.dtype, options.steps)
    print(show(figures))
    write(figures, options.out)


if __name__ == "__main__":
    main()
