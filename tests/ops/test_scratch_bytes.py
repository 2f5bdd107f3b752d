"""What ops take for themselves: bytes that torch gives out while each runs, beside what `ops.scratch_bytes` says."""

import pytest
import torch

from benchmarks.memory import Alive
from ideoflow.ops import cpu_attention, kernels
from ideoflow.ops import scratch_bytes as scratch
from ideoflow.ops.quantized_linear import Float8Linear, int8_product
from ideoflow.ops.rms_norm import RMSNorm

CHANNELS, HEADS = 512, 8
FULL = scratch.BLOCK // CHANNELS  # tokens of a whole block
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def taken(op, *inputs) -> int:
    """Bytes at the peak of a call, without its inputs and its result."""
    with torch.no_grad(), Alive() as alive:
        result = op(*inputs)
    return alive.peak - result.nbytes


def norms(tokens: int, dtype: torch.dtype) -> tuple[int, int]:
    """What `norm_scale` and `gate_norm_add` take, each token with a row of the modulation."""
    h, x = torch.randn(2, tokens, CHANNELS).to(dtype)
    norm, rest = (
        RMSNorm(CHANNELS, eps=1e-5).to(dtype),
        (torch.randn(4, CHANNELS).to(dtype), torch.randint(4, (tokens,))),
    )
    return taken(kernels.norm_scale, norm, x, *rest), taken(kernels.gate_norm_add, norm, h, x, *rest)


def rotation(tokens: int, dtype: torch.dtype) -> int:
    head = CHANNELS // HEADS
    x, tables = torch.randn(tokens, HEADS, head).to(dtype), torch.randn(2, tokens, head).to(dtype)
    return taken(kernels.norm_rotate, RMSNorm(head, eps=1e-5).to(dtype), x, *tables)


@dtypes
@pytest.mark.parametrize("tokens", [100, FULL, 2 * FULL])
def test_norms_take_a_block_of_entries_in_float32(tokens, dtype):
    expected = scratch.norm_bytes(tokens * CHANNELS, dtype.itemsize)
    assert max(norms(tokens, dtype)) == pytest.approx(expected, rel=0.01)


@dtypes
@pytest.mark.parametrize("tokens", [100, FULL, 2 * FULL])
def test_the_rotation_takes_a_block_of_entries_and_of_tables_in_float32(tokens, dtype):
    expected = scratch.rotation_bytes(tokens, HEADS, CHANNELS // HEADS, dtype.itemsize)
    assert rotation(tokens, dtype) == pytest.approx(expected, rel=0.08)  # a float a head is not counted


@dtypes
@pytest.mark.parametrize("tokens", [50, FULL + 1, 3 * FULL + 5])
def test_kernels_take_no_more_where_the_blocks_are_smaller(tokens, dtype):
    assert max(norms(tokens, dtype)) <= 1.01 * scratch.norm_bytes(tokens * CHANNELS, dtype.itemsize)
    assert rotation(tokens, dtype) <= 1.08 * scratch.rotation_bytes(tokens, HEADS, CHANNELS // HEADS, dtype.itemsize)


@dtypes
@pytest.mark.parametrize(("length", "head"), [(600, 256), (1024, 128), (2500, 128)])
def test_attention_takes_the_scores_of_some_queries_of_a_head(length, head, dtype):
    parts = torch.randn(3, 1, length, 2, head).to(dtype).unbind(0)
    expected = scratch.attention_bytes(length, head, dtype.itemsize)
    assert taken(cpu_attention.attend, *parts) == pytest.approx(expected, rel=0.01)


def test_attention_by_the_fused_kernel_takes_nothing():
    assert scratch.attention_bytes(10**6, scratch.NARROWEST - 1, 4) == 0
    assert scratch.attention_bytes(scratch.SMALLEST // 256 - 1, 256, 4) == 0


@dtypes
@pytest.mark.parametrize("tokens", [65, 1000, 5000])
def test_a_product_in_int8_takes_its_input_and_the_sums_of_some_tokens(tokens, dtype):
    x, weight = torch.randn(tokens, 64).to(dtype), torch.randint(-127, 127, (4096, 64), dtype=torch.int8)
    expected = scratch.int8_bytes(tokens, 64, 4096)
    assert taken(int8_product, x, weight, torch.rand(4096)) == pytest.approx(expected, rel=0.01)


@dtypes
def test_a_product_by_an_expanded_weight_takes_that_weight(dtype):
    layer, x = Float8Linear(600, 800, bias=False), torch.randn(50, 600).to(dtype)
    assert taken(layer, x) == pytest.approx(scratch.expanded_bytes(600, 800, dtype.itemsize), rel=0.01)
