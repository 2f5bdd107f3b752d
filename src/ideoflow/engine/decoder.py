"""Pictures of requests that are done, decoded beside the steps of others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from .overlap import Pending, SideStream
from .request import Request


class Decoder:
    """Makes pictures of requests; see `Engine` for `decode`, `to_image` and `preview`.

    Attributes:
        waiting: requests whose pictures are to be told, each with what the device decodes once it has been handed over.
    """

    def __init__(
        self,
        decode: Callable[[Request, Tensor], Tensor] | None,
        to_image: Callable[[Tensor], Any] | None,
        side: SideStream,
        preview: Callable[[Request, Tensor], Tensor] | None = None,
    ) -> None:
        self.waiting: dict[Request, Pending[Any] | None] = {}
        self._decode = decode
        self._to_image = to_image or (lambda tensor: tensor)
        self._side = side
        self._preview = preview or decode

    @property
    def previews(self) -> bool:
        """Whether there is something to make previews with."""
        return self._preview is not None

    def preview(self, request: Request) -> Any:
        """A picture of the clean latents as the last step estimates them; None where there is nothing to make it."""
        return None if self._preview is None else self._to_image(self._preview(request, request.estimate))

    def pictures(self, wait: bool) -> Iterator[tuple[Request, Any, Exception | None]]:
        """Hand all that wait to the device; pictures that are ready, or what they failed from.

        Whoever is told takes the request out of `waiting`, or it comes again.

        Args:
            wait: Whether to wait for the device, and give all of them.

        Yields:
            The request, its picture (None without `decode`), and the error if there is no picture for it.
        """
        for request in [request for request, picture in self.waiting.items() if picture is None]:
            try:
                self.waiting[request] = self._start(request)
            except Exception as error:
                yield request, None, error
        for request, picture in list(self.waiting.items()):
            if picture is None or not (picture.ready or wait):
                continue
            try:
                image = None if self._decode is None else self._to_image(picture.take())
            except Exception as error:
                yield request, None, error
            else:
                yield request, image, None

    def _start(self, request: Request) -> Pending[Any]:
        decode = self._decode
        if decode is None:
            return Pending(None)
        return self._side.run(lambda: decode(request, request.latents), request.latents)
