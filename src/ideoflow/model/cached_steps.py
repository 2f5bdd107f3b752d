"""The switch of caches over steps, by the names of diffusers' `CacheMixin`. What it asks for is the engine's to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.models.cache_utils import CacheMixin

from ..cache_configs import check_config


class CachedSteps(CacheMixin):
    """What the model inherits beside its network so that pipelines can be told to leave out steps."""

    _cache_config: Any = None

    def enable_cache(self, config: Any) -> None:
        """Leave out steps of pictures that pipelines draw with this transformer from now on, which changes them.

        The engine leaves out whole steps, of both branches, and extrapolates their velocities: no hook is put on the
        model, and a call of it by itself computes all. See docs/faster.md for what each configuration asks for here.

        Args:
            config: diffusers' `TaylorSeerCacheConfig` with `use_lite_mode=True`, `MagCacheConfig` with ratios, or
                `FirstBlockCacheConfig`.

        Raises:
            TypeError: another configuration.
            ValueError: one that cannot be honoured, or if a cache is enabled already.
        """
        if self.is_cache_enabled:
            raise ValueError(f"A cache is enabled already ({self._cache_config}): call `disable_cache` before.")
        check_config(config)
        self._cache_config = config

    def disable_cache(self) -> None:
        """Undo `enable_cache`; does nothing where no cache is enabled."""
        self._cache_config = None

    @contextmanager
    def cache_context(self, name: str, **kwargs: Any) -> Iterator[None]:
        """Nothing is kept in the model, so there is nothing to tell apart: pipelines of diffusers may call it."""
        yield

    def _reset_stateful_cache(self, recurse: bool = True) -> None:
        """Nothing is kept in the model."""
