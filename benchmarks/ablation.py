"""What each part of the step's speed is worth on this processor: the step of `benchmarks.step`, parts added one by one.

Run as `python -m benchmarks.ablation`. The stages alternate in one process; all velocities are compared first.

`--profile` says beforehand what each part should be worth. The step without it is profiled; the share that the part
changes is put at the rates of the two ways, of the same products, attention or element-wise functions alone, from
`benchmarks.products`, `benchmarks.attention` and `benchmarks.kernels`; of the short last block the products that it
spares are counted; of compiling, element-wise work is taken for nothing.
"""

from __future__ import annotations

import contextlib
import copy
import statistics
from collections.abc import Callable, Iterator, Sequence
from unittest import mock

import torch
from torch import Tensor

from benchmarks._measure import alternate, machine, make_parser, publish
from benchmarks._profile import shares
from benchmarks.attention.cpu import measure as attention_alone
from benchmarks.full.models import TINY
from benchmarks.kernels import NAMES, Sizes
from benchmarks.kernels import measure as kernels_alone
from benchmarks.products import measure as products_alone
from benchmarks.step import CONFIG, Config, OurStep, inputs
from ideoflow import Ideogram4Transformer2DModel
from ideoflow.ops import cpu_attention, linear
from ideoflow.ops.kernels import cpu_kernels
from ideoflow.ops.kernels import torch_kernels as plain
from ideoflow.packing import Layout

STAGES = (
    "no padding, nothing twice",
    "+ oneDNN products",
    "+ attention as products",
    "+ element-wise kernels for CPUs",
    "+ short last block",
    "+ fused projections",
    "+ compiled",
)


@contextlib.contextmanager
def stage(number: int) -> Iterator[None]:
    """Leave out the parts that come after a stage."""
    with contextlib.ExitStack() as stack:
        if number < 1:
            stack.enter_context(mock.patch.object(linear, "ONEDNN_IS_FASTER", False))
        if number < 2:
            stack.enter_context(mock.patch.object(cpu_attention, "FASTER", {}))
        if number < 3:
            for name in NAMES:
                stack.enter_context(mock.patch.object(cpu_kernels, name, getattr(plain, name)))
        if number < 4:
            stack.enter_context(mock.patch.object(Layout, "image_bounds", property(lambda layout: layout.bounds)))
        yield


class WholeLastBlock(OurStep):
    """Ours, with the last block computing text tokens too: they are dropped before the final layer."""

    def __init__(self, branches: list[Ideogram4Transformer2DModel], *inputs: object) -> None:
        super().__init__(branches, *inputs)  # type: ignore[arg-type]
        for branch in branches:
            plain = branch.final_layer.forward

            def forward(states: Tensor, *rest: object, plain=plain) -> Tensor:
                image = self.conditional.layout.image
                return plain(states if len(states) == len(image) else states.index_select(0, image), *rest)

            branch.final_layer.forward = forward


@torch.no_grad()
def measure(
    config: Config, dtype: torch.dtype, pixels: int, text: int, rounds: int, stages: Sequence[str] = STAGES
) -> dict[str, object]:
    """Median seconds of each stage, and how far its velocities are from the first's."""
    torch.manual_seed(0)
    branches = [Ideogram4Transformer2DModel(**config).eval().to(dtype) for _ in range(2)]
    features, latents, grid = inputs(config, dtype, pixels, text)
    whole, short, fused, compiled = (copy.deepcopy(branches) for _ in range(4))
    for branch in (*fused, *compiled):
        branch.fuse_projections()
    for branch in compiled:
        branch.compile_blocks()
    steps: list[OurStep] = [WholeLastBlock(whole, features, grid)] * 4
    steps += [OurStep(sides, features, grid) for sides in (short, fused, compiled)]

    def call(number: int) -> Tensor:
        with stage(number):
            return steps[number](latents)

    velocities = [call(number) for number in range(len(stages))]
    largest = velocities[0].abs().max()
    sides: dict[str, Callable[[], object]] = {name: lambda i=i: call(i) for i, name in enumerate(stages)}  # type: ignore[misc]
    median = {name: statistics.median(values) for name, values in alternate(sides, rounds).items()}
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "median_seconds": median,
        "relative_difference": {
            name: float((v - velocities[0]).abs().max() / largest) for name, v in zip(stages, velocities, strict=True)
        },
    }


@torch.no_grad()
def foretell(config: Config, dtype: torch.dtype, pixels: int, text: int) -> dict[str, dict[str, float]]:
    """Of each stage but the first: the profile of the one before, and the time expected of it over that one's."""
    torch.manual_seed(0)
    branches = [Ideogram4Transformer2DModel(**config).eval().to(dtype) for _ in range(2)]
    features, latents, grid = inputs(config, dtype, pixels, text)
    # The short block's own way out of the text tokens is no part of the model: profile it last, on the model as it is.
    profiles = []
    for number in (0, 1, 2, 4, 5):
        if number == 5:
            for branch in branches:
                branch.fuse_projections()
        step = (
            OurStep(branches, features, grid) if number > 3 else WholeLastBlock(copy.deepcopy(branches), features, grid)
        )
        with stage(number):
            profiles.append(shares(lambda step=step: step(latents)))  # type: ignore[misc]
    before_products, before_attention, before_kernels, before_fusing, before_compiling = profiles
    image = grid[0] * grid[1]
    hidden, inner = config["attention_head_dim"] * config["num_attention_heads"], config["intermediate_size"]

    products = 1.0
    if dtype == torch.float32:
        with torch.enable_grad():
            rates = products_alone(text + image, hidden, inner, rounds=9)["forward"]
        products = rates["torch"] / rates["oneDNN"]  # type: ignore[index]
    milliseconds = attention_alone(
        dtype, config["num_attention_heads"], config["attention_head_dim"], text + image, rounds=9
    )["milliseconds"]
    attention = milliseconds["products"] / milliseconds["fused"]  # type: ignore[index]
    sizes = Sizes(config["num_attention_heads"], config["attention_head_dim"], inner, times=1)
    # Two norms with a scale, two with a gate, queries and keys, and one SwiGLU in each block.
    alone = {name: kernels_alone(name, sizes, text + image, dtype, 9, "cpu", compiled=False) for name in NAMES}
    both_ways = {
        way: sum(count * alone[name]["median_seconds"][way] for name, count in zip(NAMES, (2, 2, 2, 1), strict=True))
        for way in ("cpu_kernels", "plain")
    }
    layer = 4 * hidden**2 + 3 * hidden * inner
    spared = text * (layer - 2 * hidden**2) / ((text + 2 * image) * layer * config["num_layers"])

    def scaled(part: str, profile: dict[str, float], ratio: float) -> float:
        return 1 - profile[part] * (1 - ratio)

    return {
        STAGES[1]: {**before_products, "expected": scaled("products", before_products, products)},
        STAGES[2]: {**before_attention, "expected": scaled("attention", before_attention, attention)},
        STAGES[3]: {
            **before_kernels,
            "expected": scaled(
                "element-wise and the rest", before_kernels, both_ways["cpu_kernels"] / both_ways["plain"]
            ),
        },
        STAGES[4]: {"expected": 1 - spared},
        STAGES[5]: {
            **before_fusing,
            "expected": scaled("products", before_fusing, _fused_over_apart(dtype, text + image, hidden, inner)),
        },
        STAGES[6]: {**before_compiling, "expected": 1 - before_compiling["element-wise and the rest"]},
    }


@torch.no_grad()
def _fused_over_apart(dtype: torch.dtype, tokens: int, hidden: int, inner: int, rounds: int = 9) -> float:
    """Seconds of a block's products with those of one input taken as one, over those of all apart."""
    x, wide = torch.randn(tokens, hidden).to(dtype), torch.randn(tokens, inner).to(dtype)
    widths = {"q, k, v": (hidden,) * 3, "w1, w3": (inner,) * 2}
    weights = {name: [torch.randn(width, hidden).to(dtype) for width in own] for name, own in widths.items()}
    together = {name: torch.cat(own) for name, own in weights.items()}
    out, down = torch.randn(hidden, hidden).to(dtype), torch.randn(hidden, inner).to(dtype)

    def rest() -> None:
        linear.linear(x, out)
        linear.linear(wide, down)

    def apart() -> None:
        rest()
        for own in weights.values():
            for weight in own:
                linear.linear(x, weight)

    def fused() -> None:
        rest()
        for weight in together.values():
            linear.linear(x, weight)

    seconds = alternate({"apart": apart, "fused": fused}, rounds)
    return statistics.median(seconds["fused"]) / statistics.median(seconds["apart"])


def main() -> None:
    """Measure, print, and write the figures."""
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--pixels", type=int, default=512, help="side of the picture")
    parser.add_argument("--text", type=int, default=200, help="tokens of the caption")
    parser.add_argument("--profile", action="store_true", help="also say what each part should be worth")
    parser.add_argument("--tiny", action="store_true", help="a model of next to nothing, to see that it runs")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled stage out")
    options = parser.parse_args()
    config = TINY if options.tiny else CONFIG
    stages = STAGES[:-1] if options.no_compile else STAGES
    results = []
    for name in options.dtype:
        dtype = getattr(torch, name)
        expected = foretell(config, dtype, options.pixels, options.text) if options.profile else {}
        figures = measure(config, dtype, options.pixels, options.text, options.rounds, stages)
        results.append({**figures, "profile_of_the_stage_before": expected} if expected else figures)
    report = {"benchmark": "ablation", "config": config, "machine": machine(), "results": results}
    publish(report, options.out)


if __name__ == "__main__":
    main()
