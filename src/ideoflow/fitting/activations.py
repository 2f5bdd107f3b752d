"""Bytes that are alive beyond the weights, at the peak of each stage of a call, counted from what the code holds there.

Each stage is a sum of named terms. What is counted is the code of a CPU, and what torch's kernels take inside there: on
CUDA the Triton kernels hold no more; of cuDNN's workspaces nothing is known here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..ops.scratch_bytes import FLOAT, attention_bytes, expanded_bytes, int8_bytes, norm_bytes, rotation_bytes
from .components import Model
from .precisions import ITEMSIZE, ONE_BYTE

INDEX = 8  # bytes of an int64
LAYOUT = 9  # int64 numbers that a layout and its bounds hold for each token: 3 positions and 6 indices
CONV_CHANNELS = 16  # convolutions copy their input into blocks of so many channels
COPY = "copy, result"  # what a convolution makes: its input in blocks of channels, and what it gives
TILE_OVERLAP = 0.25  # of a tile's side, the autoencoder's own


@dataclass(frozen=True)
class Stage:
    """A moment of a call at which much is alive.

    Attributes:
        name: The computation, in words.
        terms: Bytes beyond the weights, by what they are.
    """

    name: str
    terms: Mapping[str, int]

    @cached_property
    def bytes(self) -> int:
        """All of them."""
        return sum(self.terms.values())


def largest(stages: Iterator[Stage] | list[Stage]) -> Stage:
    """The stage with the most bytes."""
    return max(stages, key=lambda stage: stage.bytes)


@dataclass(frozen=True)
class Call:
    """What is drawn, and in what types.

    Attributes:
        model: The model.
        width: Width of each picture in pixels.
        height: Height of each picture in pixels.
        caption: Tokens of the caption, template included.
        pictures: Pictures of the call, all of one caption and size.
        steps: Steps of the schedule.
        dtype: Type that text encoder, transformers and autoencoder compute in.
        precision: Precision of the transformers' weights; None for as they are.
        expands: Whether layers of few bits expand their weights before each product, as they do where the chip has no
            product for them.
    """

    model: Model
    width: int = 1024
    height: int = 1024
    caption: int = 500
    pictures: int = 1
    steps: int = 20
    dtype: str = "bfloat16"
    precision: str | None = None
    expands: bool = False

    @property
    def item(self) -> int:
        """Bytes of a number in the compute type."""
        return ITEMSIZE[self.dtype]

    @property
    def image(self) -> int:
        """Image tokens of a picture."""
        side = self.model.token_side
        return (self.width // side) * (self.height // side)

    @property
    def guided(self) -> bool:
        """Whether there are two branches."""
        return self.model.unconditional is not None

    @property
    def tokens(self) -> int:
        """Tokens that a step of one picture takes through the transformers, both branches together."""
        return self.caption + self.image * (2 if self.guided else 1)

    # Encoding

    def encoding(self) -> Stage:
        """The text encoder over the caption, at its widest."""
        text, t, b = self.model.text, self.caption, self.item
        hidden, wide = text["hidden_size"], text["intermediate_size"]
        heads = (text["num_attention_heads"] + 2 * text["num_key_value_heads"]) * text["head_dim"]
        taps, stream = self.model.taps * t * hidden * b, t * hidden
        features = self.model.taps * t * hidden * FLOAT
        stacked = taps + (features if b != FLOAT else 0)
        held = {"taps": taps, "stream": 3 * stream * b}
        return largest(
            [
                Stage("feed-forward of the text encoder", {**held, "up, gate, product": 3 * t * wide * b}),
                Stage("norm of the text encoder", {**held, "norm": 3 * stream * FLOAT}),
                Stage("attention of the text encoder", {**held, "heads": 3 * t * heads * b}),
                Stage("stacking the taps", {"taps": taps, "text features": stacked}),
            ]
        )

    def projecting(self) -> Stage:
        """The norm and projection of the text features, by the conditional transformer."""
        width, t, b = self.model.transformer["llm_features_dim"], self.caption, self.item
        features = t * width * FLOAT
        if b == FLOAT:  # the features, those in the norm's hands, and their product with its gain
            return Stage("text projection", {"text features": features, "norm": 2 * features})
        # in the compute type; in float32 again, and squared
        return Stage("text projection", {"text features": features, "rounded": t * width * b, "norm": 2 * features})

    # Denoising

    def held(self, scheduled: bool = True) -> dict[str, int]:
        """What all steps of all pictures hold: contexts, latents, and modulations unless layers come and go."""
        configs = [config for config in (self.model.transformer, self.model.unconditional) if config is not None]
        text, contexts, modulations = self.caption, 0, 0
        for config in configs:
            tokens, hidden = text + self.image, _hidden(config)
            tables = 2 * tokens * config["attention_head_dim"] * self.item
            # The caption's embedding is kept apart too. Several pictures are packed into a stream of their own.
            one = 2 * text * hidden * self.item + tables + LAYOUT * tokens * INDEX
            contexts += one * (1 + (self.pictures if self.pictures > 1 else 0))
            modulations += (4 * config["num_layers"] + 1) * hidden * self.steps * self.item
            text = 0  # of the other branch
        latents = 4 * self.pictures * self.image * self.model.transformer["in_channels"] * FLOAT
        return {"contexts": contexts, "modulations": modulations if scheduled else 0, "latents": latents}

    def step(self, together: int | None = None, unconditional: bool = False, hooked: bool = False) -> Stage:
        """A pass of one branch at the widest moment of a block.

        Args:
            together: Pictures of the pass; None for all.
            unconditional: Whether it is the unconditional branch.
            hooked: Whether hooks bring the blocks; they hold what a block is given until it is done.
        """
        together = self.pictures if together is None else together
        config = self.model.unconditional if unconditional else self.model.transformer
        assert config is not None
        image = together * self.image
        tokens = image + (0 if unconditional else together * self.caption)
        return largest(self._block(config, tokens, image, tokens // together, hooked))

    def _block(self, config: Mapping[str, Any], tokens: int, image: int, segment: int, hooked: bool) -> Iterator[Stage]:
        hidden, wide, b = _hidden(config), config["intermediate_size"], self.item
        row = tokens * hidden * b
        fed = tokens * wide * b
        embedded = {"embedded image": image * hidden * b}
        heads, head = config["num_attention_heads"], config["attention_head_dim"]
        given = hooked * row
        # Normed and scaled, attended, their sum, normed and scaled.
        stream = {**embedded, "stream": 4 * row + given}
        yield Stage("feed-forward of a block", {**stream, "w1, w3, product": 3 * fed})
        if self.precision in ONE_BYTE and not self.expands:
            sums = int8_bytes(tokens, hidden, 2 * wide)  # one product of both
            yield Stage("w1, w3 of a block, in one byte", {**stream, "w1, w3": 2 * fed, "input, int32, float32": sums})
        if self.expands:
            weight = expanded_bytes(hidden, wide, b)
            yield Stage("w3 of a block, expanded", {**stream, "w1, w3": 2 * fed, "expanded weight": weight})
        yield Stage("norm of a block", {**embedded, "stream": 4 * row + given, "norm": norm_bytes(tokens * hidden, b)})
        projected = {**embedded, "stream": 2 * row, "queries, keys, values": 4 * row}
        rotation = rotation_bytes(tokens, heads, head, b)
        yield Stage("rotation in a block", {**projected, "rotated": row, "in float32": rotation})
        scores = attention_bytes(segment, head, b)
        yield Stage("attention of a block", {**projected, "rotated, attended": 2 * row, "a head's scores": scores})

    # Decoding

    def decoding(self, together: int | None = None, tile: int | None = None) -> Stage:
        """The autoencoder's decoder at its widest moment.

        Args:
            together: Pictures decoded as one batch; None for all. The others' pictures are held.
            tile: Side of a tile in pixels; None for whole pictures.
        """
        together = self.pictures if together is None else together
        picture = 3 * self.width * self.height
        finished = {"pictures": self.pictures * picture * (self.item + (FLOAT if self.item != FLOAT else 0))}
        if tile is None or max(self.width, self.height) <= tile:
            inner = largest(self._decoder(self.width, self.height, together))
            return Stage(inner.name, {**inner.terms, **finished})
        inner = largest(self._decoder(min(tile, self.width), min(tile, self.height), together))
        tiles = 3 * sum(w * h for w, h in self.tiles(tile)) * together * self.item
        return Stage(f"{inner.name}, in tiles", {**inner.terms, "decoded tiles": tiles, **finished})

    def tiles(self, tile: int) -> list[tuple[int, int]]:
        """Width and height of each tile that the autoencoder cuts a picture into, in pixels."""
        stride = int(tile * (1 - TILE_OVERLAP))
        return [
            (min(tile, self.width - x), min(tile, self.height - y))
            for y in range(0, self.height, stride)
            for x in range(0, self.width, stride)
        ]

    def _decoder(self, width: int, height: int, batch: int) -> Iterator[Stage]:
        """What is alive in each layer of the decoder, over a picture of this size."""
        b = self.item

        def size(channels: int, scale: int, item: int = b) -> int:
            return batch * channels * (width // scale) * (height // scale) * item

        def convolution(entering: int, leaving: int, scale: int) -> int:
            """Bytes of a convolution: a copy of its input in blocks of channels, and its result."""
            return size(_padded(entering), scale) + size(_padded(leaving), scale)

        for block in decoder_blocks(self.model.autoencoder):
            scale = block.scale
            for number, (entering, leaving) in enumerate(block.resnets):
                # The decoder holds a block's input until the block is done.
                here = {"block's input": size(block.resnets[0][0], scale)} if number else {}
                here["input"] = size(entering, scale)
                yield Stage("norm of the decoder", {**here, "normed, activated": 2 * size(entering, scale)})
                inside = {"activated": size(entering, scale), COPY: convolution(entering, leaving, scale)}
                yield Stage("convolution of the decoder", {**here, **inside})
                inside = {"activated": size(leaving, scale), COPY: convolution(leaving, leaving, scale)}
                yield Stage("convolution of the decoder", {**here, **inside})
                results = 3
                if entering != leaving:  # 1 x 1, in float32 inside
                    through = size(entering, scale, FLOAT) if b != FLOAT else 0
                    inside = {"second result": size(leaving, scale), COPY: through + size(leaving, scale)}
                    yield Stage("shortcut of the decoder", {**here, **inside})
                    results = 4
                yield Stage("sum of the decoder", {**here, "results, sum, scaled": results * size(leaving, scale)})
            own = size(block.resnets[-1][1], scale)
            if block.attention:
                yield Stage("attention of the decoder", {"input": own, "heads": 6 * own})
            if block.upsamples:
                channels, finer = block.resnets[-1][1], scale // 2
                here = {"block's input": size(block.resnets[0][0], scale), "coarse": own}
                inside = {"upsampled": size(channels, finer), COPY: convolution(channels, channels, finer)}
                yield Stage("upsampling of the decoder", {**here, **inside})


@dataclass(frozen=True)
class DecoderBlock:
    """A block of the decoder: its residual layers' channels, and at which scale (pixels of the picture) they work."""

    scale: int
    resnets: tuple[tuple[int, int], ...]
    attention: bool
    upsamples: bool


def decoder_blocks(config: Mapping[str, Any]) -> list[DecoderBlock]:
    """The middle block and the upsampling ones of an `AutoencoderKLFlux2`'s decoder, in order."""
    channels = list(reversed(config.get("decoder_block_out_channels") or config["block_out_channels"]))
    layers = config["layers_per_block"] + 1
    scale = 2 ** (len(channels) - 1)
    blocks = [DecoderBlock(scale, ((channels[0], channels[0]),) * 2, config["mid_block_add_attention"], False)]
    before = channels[0]
    for index, own in enumerate(channels):
        last = index == len(channels) - 1
        blocks.append(DecoderBlock(scale, ((before, own), *((own, own),) * (layers - 1)), False, not last))
        before, scale = own, scale if last else scale // 2
    return blocks


def _hidden(config: Mapping[str, Any]) -> int:
    return config["attention_head_dim"] * config["num_attention_heads"]


def _padded(channels: int) -> int:
    return -(-channels // CONV_CHANNELS) * CONV_CHANNELS
