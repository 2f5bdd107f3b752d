"""How many times a block asks the GPU for something: kernels, products and attention, counted without one.

Triton's kernels have stand-ins, each of which is one launch (`tests/ops/kernels/test_interpreter.py` counts theirs).
Everything else that a block computes is an operation of torch, and torch tells of each.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.roofline import ELEMENTWISE, KERNELS, Config, Sample, count, work_of
from ideoflow import Ideogram4Transformer2DModel
from ideoflow.ops import kernels, quantize_
from ideoflow.ops.kernels import torch_kernels as plain
from ideoflow.ops.quantized_linear import has_product
from ideoflow.ops.rows import Rows, quantize_rows
from ideoflow.packing import Layout
from tests.small import NARROW

CONFIG = NARROW | dict(
    num_layers=3, rope_theta=10_000, num_attention_heads=2, attention_head_dim=16, intermediate_size=48
)
TIMES = torch.tensor([0.3])
LAYOUT = Layout.of_samples([(0, 4, 8)])
MAKE_NOTHING = frozenset(  # they launch nothing
    [
        "empty",
        "empty_strided",
        "view",
        "_unsafe_view",
        "t",
        "transpose",
        "split",
        "split_with_sizes",
        "select",
        "slice",
        "unsqueeze",
        "squeeze",
        "expand",
        "alias",
        "detach",
        "as_strided",
        "permute",
        "reshape",
    ]
)


class Launches(TorchDispatchMode):
    """Counts what runs on the device, and the bytes that kernels read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if name not in MAKE_NOTHING:
            self.counts[name] += 1
        return func(*args, **kwargs or {})

    def kernel(self, name):
        """A stand-in that computes by plain torch, unseen."""

        def run(*arguments, into=None):
            with torch.utils._python_dispatch._disable_current_modes():
                given = [each for each in arguments if isinstance(each, torch.Tensor)]
                result = compute(name, arguments, into)
            self.counts[name] += 1
            written = result if isinstance(result, tuple) else (result,)
            parts = [part for each in written for part in (vars(each).values() if isinstance(each, Rows) else [each])]
            moved = [each for each in (*given, *parts) if isinstance(each, torch.Tensor) and len(each) == LAYOUT.tokens]
            self.bytes[name] += sum(each.nbytes for each in moved if each.ndim > 1)
            return result

        return run


def compute(name, arguments, into):
    def form(x):
        return x if into is None else Rows(*quantize_rows(x, into), x.dtype)

    if name == "gate_norm_add_norm_scale":
        norm, h, y, gate, following, scale, row = arguments
        total = plain.gate_norm_add(norm, h, y, gate, row)
        return total, form(plain.norm_scale(following, total, scale, row))
    if name == "norm_rotate_pair":
        first, x, second, y, *tables = arguments
        return plain.norm_rotate(first, x, *tables), plain.norm_rotate(second, y, *tables)
    return form(arguments[0] if name == "round_rows" else getattr(plain, name)(*arguments))


class StandIn:
    INTERPRETED = True
    FAILURES = (RuntimeError,)


@pytest.fixture
def launches(monkeypatch):
    """What a step launches, where Triton's kernels are to be had and nothing has to be checked."""
    counted, stand_in = Launches(), StandIn()
    for name in (*kernels.__all__,):
        if name not in ("at_tokens", "available"):
            setattr(stand_in, name, counted.kernel(name))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(kernels, "_triton_kernels", lambda: stand_in)
    monkeypatch.setattr(kernels, "_check", lambda *_: None)
    return counted


def model(layers: int = 3) -> Ideogram4Transformer2DModel:
    torch.manual_seed(0)
    made = Ideogram4Transformer2DModel(**CONFIG | {"num_layers": layers}).eval().requires_grad_(False)
    made.to(torch.bfloat16).fuse_projections()
    return made


@torch.no_grad()
def of_a_block(launches: Launches, prepare=lambda model: None) -> tuple[Counter, Counter]:
    """What one block more adds to a step: launches by kind, and bytes of tokens that kernels move."""
    found = []
    for layers in (3, 4):
        made = model(layers)
        prepare(made)
        context, modulation = made.prepare(None, LAYOUT), made.modulate(TIMES)
        latents = torch.randn(LAYOUT.tokens, CONFIG["in_channels"], dtype=torch.bfloat16)
        launches.counts.clear(), launches.bytes.clear()
        with launches, sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            made.velocity(latents, TIMES, context, modulation=modulation)
        found.append((Counter(launches.counts), Counter(launches.bytes)))
    (few, less), (many, more) = found
    return many - few, more - less


def test_a_block_in_bfloat16_takes_nine_launches(launches):
    counts, _ = of_a_block(launches)

    ours = {name: counts.pop(name) for name in list(counts) if hasattr(StandIn(), name) or name in kernels.__all__}
    assert ours == {"norm_rotate_pair": 1, "gate_norm_add_norm_scale": 2, "swiglu": 1}
    assert counts.pop("mm") == 4  # q, k and v; out; w1 and w3; w2
    assert sum(counts.values()) == 1, counts  # attention


@pytest.fixture
def float8(monkeypatch):
    """Products in float8 as on Hopper."""
    if not has_product(torch.float8_e4m3fn, torch.device("cpu")):
        pytest.skip("this torch has no float8 products with row scales on a CPU")
    monkeypatch.setattr("ideoflow.ops.quantized_linear._capability", lambda tokens: (9, 0))
    return lambda model: quantize_(model, "fp8")


def test_a_block_in_float8_takes_ten_launches(launches, float8):
    counts, _ = of_a_block(launches, float8)

    ours = {name: counts.pop(name) for name in list(counts) if name in kernels.__all__}
    # What attention gives is rounded by a kernel of its own: nobody else's kernel writes rows.
    assert ours == {"norm_rotate_pair": 1, "gate_norm_add_norm_scale": 2, "swiglu": 1, "round_rows": 1}
    assert counts.pop("_scaled_mm") == 4
    assert sum(counts.values()) == 1, counts


def elementwise_bytes(kernels_of_a_step, layers: int) -> int:
    config = replace(Config.of(CONFIG), num_layers=layers)
    samples = [Sample(0, 4, 8, guided=False)]
    return work_of(count(config, samples, kernels_of_a_step, "bfloat16"), ELEMENTWISE).bytes


@pytest.mark.parametrize("name", ["~ fused", "fp8, kernels write rows"])
def test_the_kernels_of_a_block_move_the_bytes_that_the_roofline_counts(name, launches, request):
    prepare = request.getfixturevalue("float8") if "fp8" in name else lambda model: None
    _, moved = of_a_block(launches, prepare)

    side = next(side for side in KERNELS if side.name == name)
    assert sum(moved.values()) == elementwise_bytes(side, 4) - elementwise_bytes(side, 3)


def test_joined_kernels_move_a_tenth_less_and_rows_two_thirds_less_than_rounding_apart():
    full = [Sample(400, 64, 64)]
    apart, joined, by_torch, by_kernels = (
        work_of(count(Config(), full, side, "bfloat16"), ELEMENTWISE).bytes for side in KERNELS
    )
    assert joined < 0.91 * apart
    assert by_kernels < 0.34 * by_torch and by_kernels < joined
