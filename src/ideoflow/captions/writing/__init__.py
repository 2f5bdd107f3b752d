"""From a thought to a caption, from a picture to a caption, and from one caption and a wish to another."""

from .endpoint import Endpoint
from .tasks import describe, differences, edit, write
from .written import Writer, WritingError, Written

__all__ = ["Endpoint", "Writer", "WritingError", "Written", "describe", "differences", "edit", "write"]
