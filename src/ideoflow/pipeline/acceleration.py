"""What makes a pipeline faster: compiling, fusing, few bits, attention backends and CUDA graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..checks import whole
from ..model import Ideogram4Transformer2DModel
from ..ops import quantize_


class PipelineSpeed:
    """What `Ideogram4Pipeline` inherits."""

    transformer: Ideogram4Transformer2DModel
    unconditional_transformer: Ideogram4Transformer2DModel | None
    vae_scale_factor: int
    patch_size: int
    _cuda_graphs = False

    def compile(self, **options: Any) -> None:
        """Compile the blocks of the transformers, their projections fused, once for all sizes, captions and pictures.

        The first steps take minutes on a CPU; a compiler must be there (g++ on a CPU). Fusing element-wise work rounds
        it less often: pictures move within rounding.

        Args:
            options: Of `torch.compile`, all but `dynamic` and `fullgraph`; `mode="max-autotune-no-cudagraphs"` for
                instance.
        """
        for transformer in self._transformers():
            transformer.fuse_projections()
            transformer.compile_blocks(**options)

    def enable_cuda_graphs(self) -> None:
        """Record the kernels of a set of pictures at its second step and launch them at once at each later one.

        Small pictures, whose kernels are shorter than launching them takes, are drawn faster; no picture changes. Holds
        for calls and engines made from now on, while the transformers are on a CUDA device, are not offloaded and have
        no adapters; what cannot be recorded is computed as without.

        Raises:
            ValueError: if torch sees no CUDA device.
        """
        if not torch.cuda.is_available():
            raise ValueError("CUDA graphs need a CUDA device, and torch sees none here: draw without them.")
        self._cuda_graphs = True

    def disable_cuda_graphs(self) -> None:
        """Undo `enable_cuda_graphs`."""
        self._cuda_graphs = False

    def tune_attention(
        self, size: tuple[int, int] = (1024, 1024), caption_tokens: int = 500, pictures: int = 1
    ) -> dict[str, dict[str, float]]:
        """Time the attention backends that this machine has, and use the fastest in each transformer.

        Args:
            size: `(width, height)` in pixels of the pictures to come.
            caption_tokens: Of their captions.
            pictures: How many share a pass.

        Returns:
            Of each transformer, seconds of each exact backend that runs here, the fastest first.

        Raises:
            ValueError: a size that is no pair of pixels, multiples of a token's side, or numbers that are too small.
            TypeError: numbers that are not whole.
        """
        unit = self.vae_scale_factor * self.patch_size
        is_pair = isinstance(size, tuple) and len(size) == 2 and all(isinstance(side, int) for side in size)
        if not is_pair or min(size) < 1 or size[0] % unit or size[1] % unit:
            raise ValueError(f"`size` is {size!r}: give (width, height) in pixels, multiples of {unit}.")
        caption_tokens = whole("caption_tokens", caption_tokens, 0)
        pictures = whole("pictures", pictures, 1)
        image = (size[0] // unit) * (size[1] // unit)
        branches = {"transformer": caption_tokens + image, "unconditional_transformer": image}
        return {
            name: getattr(self, name).tune_attention([tokens] * pictures)
            for name, tokens in branches.items()
            if getattr(self, name) is not None
        }

    def fuse_projections(self) -> None:
        """Compute q, k and v as one product in the transformers' blocks, and w1 and w3: fewer and larger products.

        Nothing else changes: no name, no file, no adapter, and the memory stays what it was. Pictures move within
        rounding. Call it once the pipeline is where it computes, and before offloading is set up.
        """
        for transformer in self._transformers():
            transformer.fuse_projections()

    def unfuse_projections(self) -> None:
        """Undo `fuse_projections`."""
        for transformer in self._transformers():
            transformer.unfuse_projections()

    def quantize(self, kind: str, skip: str | Sequence[str] = ()) -> None:
        """Keep the linear layers of the transformers' blocks in one byte a weight, in place.

        They multiply in that type where the chip has fast products for it (fp8 on CUDA from Ada and Hopper on, int8 on
        CUDA from Ampere on and on CPUs with VNNI), and expand their weights to the input's type elsewhere. Pictures
        change; how much is in docs/performance.md. Call it after the pipeline is on its device and before `compile` and
        offloading. Adapters may come before or after.

        Args:
            kind: "fp8" (float8_e4m3fn, a scale for each output row) or "int8".
            skip: Layers to leave alone: patterns that whole names match, such as `layers\\.0\\..*`.

        Raises:
            TypeError: if layers are quantized already.
            ValueError: an unknown kind, a pattern that matches nothing, or hooks on the layers.
        """
        for transformer in self._transformers():
            quantize_(transformer, kind, skip)

    def _transformers(self) -> list[Ideogram4Transformer2DModel]:
        return [one for one in (self.transformer, self.unconditional_transformer) if one is not None]
