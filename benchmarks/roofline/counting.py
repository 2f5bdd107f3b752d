"""The work of one step of several pictures, as each implementation calls its transformers."""

from __future__ import annotations

from collections.abc import Sequence

from .layers import Counter
from .sizes import Config, Implementation, Sample
from .work import ELEMENTWISE, EMBEDDING, FINAL, REQUEST, STEP, TABLES, TEXT, TIME, Part, Work, total


def count(
    config: Config, samples: Sequence[Sample], implementation: Implementation, dtype: str, device: str = "cuda"
) -> list[Part]:
    """The work of one step of all samples, and what is done once for each.

    Args:
        config: sizes of both transformers.
        samples: the pictures that take the step together.
        implementation: who computes it.
        dtype: "float32" or "bfloat16", of weights and activations.
        device: "cuda" or "cpu", see `Machine`.

    Raises:
        ValueError: no sample, or a caption that the peer does not take.
    """
    if not samples:
        raise ValueError("`samples` is empty: give at least one.")
    peer = implementation.padded_text is not None
    counter = Counter(config, dtype, implementation, peer, device)
    return _count_peer(counter, samples, implementation) if peer else _count_ours(counter, samples, implementation)


def _count_ours(counter: Counter, samples: Sequence[Sample], implementation: Implementation) -> list[Part]:
    parts = []
    branches = {"conditional": [(s, s.text) for s in samples], "unconditional": [(s, 0) for s in samples if s.guided]}
    for call, branch in branches.items():
        if not branch:
            continue
        whole = [(s.image + text, s.image + text) for s, text in branch]
        read = [(s.image, s.image + text) for s, text in branch] if implementation.last_block_image_only else whole
        gathered = len(branch) > 1
        tokens, image = sum(keys for _, keys in whole), sum(s.image for s, _ in branch)
        works = {
            EMBEDDING: counter.embedding(tokens, image),
            TIME: counter.time(len(branch)),
            FINAL: counter.final(image, sum(queries for queries, _ in read), gathered),
        }
        layers = counter.config.num_layers
        before = counter.blocks(whole, layers - 1, gathered, masked=False)
        last = counter.blocks(read, 1, gathered, masked=False)
        works |= {name: before[name] + last[name] for name in before}
        works[ELEMENTWISE] += counter.between(whole, read, layers)
        parts += [Part(name, call, STEP, work) for name, work in works.items()]
        for i, (s, text) in enumerate(branch):
            call_once, embedded = f"{call}, request {i}", text * counter.config.hidden
            row_added = counter.passes(embedded, embedded, embedded)
            once = {TEXT: counter.text_projection(text) + row_added, TABLES: counter.our_tables(s.image + text)}
            parts += [Part(name, call_once, REQUEST, work) for name, work in once.items()]
    return parts


def _count_peer(counter: Counter, samples: Sequence[Sample], implementation: Implementation) -> list[Part]:
    parts = []
    longest = max(s.text for s in samples)
    if implementation.padded_text and longest > implementation.padded_text:
        raise ValueError(f"a caption of {longest} tokens is longer than the {implementation.padded_text} padded to.")
    for rows, cols in dict.fromkeys((s.rows, s.cols) for s in samples):
        batch = [s for s in samples if (s.rows, s.cols) == (rows, cols)]
        text = implementation.padded_text or max(s.text for s in batch)
        for call, length in (("conditional", text + rows * cols), ("unconditional", rows * cols)):
            tokens, features = len(batch) * length, len(batch) * length * counter.config.llm_features_dim
            projected = len(batch) * length * counter.config.hidden
            masks = counter.passes(features + projected, features + projected, features + projected)
            works = {
                EMBEDDING: counter.embedding(tokens, tokens),
                TIME: counter.time(len(batch)),
                FINAL: counter.final(tokens, tokens, gathered=False),
                TEXT: counter.text_projection(tokens) + masks,
                TABLES: counter.peer_tables(len(batch), length),
            }
            works |= counter.blocks([(length, length)] * len(batch), counter.config.num_layers, False, masked=True)
            parts += [Part(name, f"{call}, {rows} x {cols}", STEP, work) for name, work in works.items()]
    return parts


def work_of(parts: Sequence[Part], name: str | None = None, when: str | None = STEP) -> Work:
    """The sum of the parts of this name (None for all) at this time (None for all)."""
    return total([p.work for p in parts if name in (None, p.name) and when in (None, p.when)])
