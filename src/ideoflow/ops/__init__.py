"""Low-precision matrix products: `quantize_` a transformer's blocks to one byte a weight, `dequantize_` them again."""

from typing import TYPE_CHECKING

from .._imports import lazily

if TYPE_CHECKING:
    from .quantize import KINDS, dequantize_, quantize_
    from .quantized_linear import Float8Linear, Int8Linear, QuantizedLinear

__all__ = ["KINDS", "Float8Linear", "Int8Linear", "QuantizedLinear", "dequantize_", "quantize_"]

__getattr__ = lazily(
    __name__,
    {
        ".quantized_linear": ("Float8Linear", "Int8Linear", "QuantizedLinear"),
        ".quantize": ("KINDS", "dequantize_", "quantize_"),
    },
)
