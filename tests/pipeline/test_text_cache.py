"""The cache of embedded captions: bounded bytes, and the oldest use dropped first."""

import copy
import pickle

import pytest
import torch

from ideoflow.pipeline.text_cache import TextCache


def test_the_least_recently_used_is_dropped_first():
    cache = TextCache(max_bytes=2 * 40)
    for key in "ab":
        cache.put(key, torch.ones(10))
    cache.get("a")
    cache.put("c", torch.ones(10))

    assert cache.get("b") is None and cache.get("a") is not None and cache.get("c") is not None
    assert cache.bytes == 80 and len(cache) == 2
    assert (cache.hits, cache.misses) == (3, 1)


def test_what_is_too_large_is_not_kept():
    cache = TextCache(max_bytes=39)
    cache.put("a", torch.ones(10))

    assert len(cache) == 0 and cache.bytes == 0


def test_clear_forgets_all():
    cache = TextCache(100)
    cache.put("a", torch.ones(3))
    cache.clear()

    assert cache.get("a") is None and cache.bytes == 0


def test_negative_bounds_are_refused():
    with pytest.raises(ValueError, match="`max_bytes` is -1"):
        TextCache(-1)


def test_a_copy_is_empty_and_of_the_same_size():
    cache = TextCache(100)
    cache.put("a", torch.zeros(2))

    for twin in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert len(twin) == 0 and twin.bytes == 0 and twin.max_bytes == 100


@pytest.mark.parametrize("size", [float("nan"), 1.5, "x", None])
def test_its_size_is_a_whole_number(size):
    with pytest.raises(TypeError, match="`max_bytes` is"):
        TextCache(size)
