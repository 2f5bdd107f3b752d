"""Checkpoints in every form that users have: recognised by what they hold, loaded one tensor at a time."""

from .errors import CheckpointError
from .forms import Checkpoint, open_checkpoint
from .load import load_transformer

__all__ = ["Checkpoint", "CheckpointError", "load_transformer", "open_checkpoint"]
