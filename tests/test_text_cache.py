"""The cache of embedded captions: bounded bytes, the oldest use dropped first, and stale weights never served."""

import pytest
import torch
from torch import nn

from ideoflow.text_cache import TextCache, weights_key


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


def test_keys_change_with_weights_alone():
    model, other = nn.Linear(3, 3), nn.Linear(3, 3)
    key = weights_key(model)

    assert weights_key(model) == key and weights_key(other) != key
    with torch.no_grad():
        model.weight.mul_(2)
    changed = weights_key(model)
    assert changed != key
    assert weights_key(model.to(torch.bfloat16)) != changed


def test_adapters_have_no_key():
    model = nn.Sequential(nn.Linear(3, 3))
    model[0].lora_A = nn.ModuleDict()

    assert weights_key(model) is None
