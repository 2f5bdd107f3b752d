"""Checkpoints in every form that users have: recognised by what they hold, loaded one tensor at a time.

What reads headers alone does without torch.
"""

from typing import TYPE_CHECKING

from .._imports import lazily
from .checkpoint import Checkpoint, open_checkpoint
from .errors import CheckpointError

if TYPE_CHECKING:
    from .load import load_transformer

__all__ = ["Checkpoint", "CheckpointError", "load_transformer", "open_checkpoint"]

__getattr__ = lazily(__name__, {".load": ("load_transformer",)})
