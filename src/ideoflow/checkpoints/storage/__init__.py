"""Kinds of storage: how the weights of linear layers lie in files."""

from .base import Infos, Parts, Storage
from .float8 import Float8
from .gguf import Gguf
from .nf4 import NF4
from .plain import Plain

KINDS: tuple[Storage, ...] = (Plain(), Float8(), NF4(), Gguf())

__all__ = ["KINDS", "NF4", "Float8", "Gguf", "Infos", "Parts", "Plain", "Storage"]
