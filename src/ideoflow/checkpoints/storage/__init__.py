"""Kinds of storage: how the weights of linear layers lie in files."""

from .base import Infos, Parts, Storage
from .float8 import Float8
from .plain import Plain

KINDS: tuple[Storage, ...] = (Plain(), Float8())

__all__ = ["KINDS", "Float8", "Infos", "Parts", "Plain", "Storage"]
