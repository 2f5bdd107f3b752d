"""The types of GGUF's blocks, each of 32 or 256 values with their scales: how many values, in how many bytes.

Told without torch, so that a file's header can be read without it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GgufType:
    """How a type lies in memory.

    Attributes:
        number: its number in files, `GGMLQuantizationType` of the gguf package.
        values: how many values a block holds.
        size: bytes of a block.
        scales: byte offsets in a block of its float16 scales, where it has such.
    """

    number: int
    values: int
    size: int
    scales: tuple[int, ...] = ()


# GGML_QUANT_SIZES of the gguf package, of the types that it can expand.
QUANTIZED = {
    "Q4_0": GgufType(2, 32, 18, (0,)),
    "Q4_1": GgufType(3, 32, 20, (0, 2)),
    "Q5_0": GgufType(6, 32, 22, (0,)),
    "Q5_1": GgufType(7, 32, 24, (0, 2)),
    "Q8_0": GgufType(8, 32, 34, (0,)),
    "Q2_K": GgufType(10, 256, 84, (80, 82)),
    "Q3_K": GgufType(11, 256, 110, (108,)),
    "Q4_K": GgufType(12, 256, 144, (0, 2)),
    "Q5_K": GgufType(13, 256, 176, (0, 2)),
    "Q6_K": GgufType(14, 256, 210, (208,)),
    "IQ2_XXS": GgufType(16, 256, 66, (0,)),
    "IQ2_XS": GgufType(17, 256, 74, (0,)),
    "IQ3_XXS": GgufType(18, 256, 98, (0,)),
    "IQ1_S": GgufType(19, 256, 50, (0,)),
    "IQ4_NL": GgufType(20, 32, 18, (0,)),
    "IQ3_S": GgufType(21, 256, 110, (0,)),
    "IQ2_S": GgufType(22, 256, 82, (0,)),
    "IQ4_XS": GgufType(23, 256, 136, (0,)),
    "IQ1_M": GgufType(29, 256, 56),
    "TQ1_0": GgufType(34, 256, 54, (52,)),
    "TQ2_0": GgufType(35, 256, 66, (64,)),
    "MXFP4": GgufType(39, 32, 17),
    "NVFP4": GgufType(40, 64, 36),
}
