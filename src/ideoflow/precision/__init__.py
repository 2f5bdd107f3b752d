"""Low-precision matrix products: `quantize_` a transformer's blocks to one byte a weight, `dequantize_` them again."""

from .linear import Float8Linear, Int8Linear, QuantizedLinear
from .quantize import KINDS, dequantize_, quantize_

__all__ = ["KINDS", "Float8Linear", "Int8Linear", "QuantizedLinear", "dequantize_", "quantize_"]
