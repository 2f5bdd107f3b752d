"""The transformer: `prepare` what no step changes, compute velocities at each step, or both at once in `forward`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import AttentionMixin
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.normalization import RMSNorm
from diffusers.utils import apply_lora_scale
from torch import Tensor, nn

from ..checkpoints.transformer_files import TransformerFiles
from ..configuration import check_config
from ..ops.accelerated import Accelerated
from ..ops.hooks import fires_hooks, is_hooked, is_offloaded, is_plain, modules_within, with_hooks
from ..ops.host import is_readable
from ..ops.linear import Linear
from ..ops.tensor_checks import check_autocast, check_float, check_integer
from ..packing import Bounds, Layout, rows_to_layout
from .blocks import FinalLayer, Ideogram4TransformerBlock, takes_stream
from .cached_steps import CachedSteps
from .context import Context, Modulation, Prepared
from .export import velocity_of_rows
from .rope import rotary_tables
from .stream import Stream
from .times import TimeEmbedding, check_times, distinct_times


class Ideogram4Transformer2DModel(TransformerFiles, ModelMixin, ConfigMixin, AttentionMixin, CachedSteps, Accelerated):
    """The flow-matching transformer of Ideogram 4, over a ragged stream of text and image tokens.

    A token attends to its own segment only, and no padding is ever computed. Parameter names and configuration are
    those of diffusers' class of this name: a checkpoint of one opens in the other.

    Args:
        in_channels: latent channels of a token (autoencoder channels * patch size ** 2).
        num_layers: number of blocks.
        attention_head_dim: channels of a head, even.
        num_attention_heads: number of heads; their product with `attention_head_dim` is the hidden width.
        intermediate_size: hidden width of the feed-forward layers.
        adaln_dim: width of the conditioning vector that modulates the blocks.
        llm_features_dim: width of the text features of a token.
        rope_theta: base of the rotary frequencies.
        mrope_section: number of rotary frequencies of the axes (t, h, w).
        norm_eps: epsilon of the RMS norms of the blocks.

    Raises:
        ValueError: a size that is not a positive integer, an odd head, or sections that do not fit the head.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["Ideogram4TransformerBlock"]  # noqa: RUF012 (diffusers declares these so)
    _repeated_blocks = ["Ideogram4TransformerBlock"]  # noqa: RUF012
    _skip_layerwise_casting_patterns = ["t_embedding", "adaln_proj", "embed_image_indicator"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        in_channels: int = 128,
        num_layers: int = 34,
        attention_head_dim: int = 256,
        num_attention_heads: int = 18,
        intermediate_size: int = 12288,
        adaln_dim: int = 512,
        llm_features_dim: int = 53248,
        rope_theta: int = 5_000_000,
        mrope_section: tuple[int, int, int] = (24, 20, 20),
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        check_config(
            {
                "in_channels": in_channels,
                "num_layers": num_layers,
                "attention_head_dim": attention_head_dim,
                "num_attention_heads": num_attention_heads,
                "intermediate_size": intermediate_size,
                "adaln_dim": adaln_dim,
                "llm_features_dim": llm_features_dim,
                "mrope_section": mrope_section,
            }
        )
        hidden_size = attention_head_dim * num_attention_heads
        self.in_channels = in_channels
        self.out_channels = in_channels
        self.hidden_size = hidden_size
        self.gradient_checkpointing = False

        self.input_proj = Linear(in_channels, hidden_size)
        # Unlike torch's, diffusers' norm takes float32 features in a half-precision model and rounds after the norm.
        self.llm_cond_norm = RMSNorm(llm_features_dim, eps=1e-6)
        self.llm_cond_proj = Linear(llm_features_dim, hidden_size)
        self.t_embedding = TimeEmbedding(hidden_size)
        self.adaln_proj = Linear(hidden_size, adaln_dim)
        self.embed_image_indicator = nn.Embedding(2, hidden_size)  # row 1: image token, row 0: any other
        self.layers = nn.ModuleList(
            Ideogram4TransformerBlock(hidden_size, intermediate_size, num_attention_heads, norm_eps, adaln_dim)
            for _ in range(num_layers)
        )
        self.final_layer = FinalLayer(hidden_size, in_channels, adaln_dim)

    @property
    def dtype(self) -> torch.dtype:
        """Type that the model computes in: of its first parameter of floating point, unless hooks cast.

        As diffusers has it, which asks all modules by name, and at every step that takes longer than to launch a block.
        """
        if not is_offloaded(self):
            for parameter in self.parameters():
                if parameter.is_floating_point():
                    return parameter.dtype
        return super().dtype

    @apply_lora_scale("attention_kwargs")
    @fires_hooks
    def prepare(
        self, encoder_hidden_states: Tensor | None, layout: Layout, attention_kwargs: dict[str, Any] | None = None
    ) -> Context:
        """Compute what no step changes: embedded text and rotary tables.

        Args:
            encoder_hidden_states: (text_tokens, llm_features_dim) features of the layout's text tokens, in stream
                order; None if it has none (the unconditional branch).
            layout: the segments of the stream.
            attention_kwargs: `{"scale": s}` scales LoRA adapters.

        Returns:
            The context for `velocity`, valid until the weights change.

        Raises:
            ValueError: features that do not match the layout or the model's width.
            TypeError: features that are not a floating-point tensor.
        """
        check_autocast(self, layout)
        if encoder_hidden_states is not None or len(layout.text):
            shape = {"text_tokens": len(layout.text), "llm_features_dim": self.config.llm_features_dim}
            check_float("encoder_hidden_states", encoder_hidden_states, shape)
        return self._prepare(encoder_hidden_states, layout)

    @apply_lora_scale("attention_kwargs")
    @fires_hooks
    def project_text(self, encoder_hidden_states: Tensor, attention_kwargs: dict[str, Any] | None = None) -> Tensor:
        """Norm and project text features, the part of `prepare` that depends on nothing but the caption.

        Args:
            encoder_hidden_states: (text_tokens, llm_features_dim) features, of one caption or of several.
            attention_kwargs: `{"scale": s}` scales LoRA adapters.

        Returns:
            (text_tokens, hidden_size) for `prepare_projected`; a small fraction of the features' size, so worth keeping
            where the same captions come again and the projection does not train.

        Raises:
            ValueError: features that do not match the model's width.
            TypeError: features that are not a floating-point tensor.
        """
        shape = {"text_tokens": None, "llm_features_dim": self.config.llm_features_dim}
        check_float("encoder_hidden_states", encoder_hidden_states, shape)
        check_autocast(self, encoder_hidden_states)
        return self.llm_cond_proj(self.llm_cond_norm(encoder_hidden_states))

    @fires_hooks
    def prepare_projected(self, text: Tensor | None, layout: Layout) -> Context:
        """`prepare` from what `project_text` gave.

        Args:
            text: (text_tokens, hidden_size) projected features of the layout's text tokens, in stream order; None if it
                has none.
            layout: the segments of the stream.

        Returns:
            The context for `velocity`, valid until the weights change.

        Raises:
            ValueError: features that do not match the layout or the model's width.
            TypeError: features that are not a floating-point tensor.
        """
        if text is not None or len(layout.text):
            check_float("text", text, {"text_tokens": len(layout.text), "hidden_size": self.hidden_size})
        return self._embed(text, layout)

    def _prepare(self, encoder_hidden_states: Tensor | None, layout: Layout) -> Context:
        if len(layout.text) == 0:
            return self._embed(None, layout)
        return self._embed(self.llm_cond_proj(self.llm_cond_norm(encoder_hidden_states)), layout)

    def _embed(self, text: Tensor | None, layout: Layout) -> Context:
        other = self.embed_image_indicator(torch.zeros(1, dtype=torch.long, device=layout.device))
        if text is None or len(layout.text) == 0:
            text = other.expand(len(layout.other), -1)
        else:
            if len(layout.other) > len(layout.text):  # between the text tokens stand empty ones
                place = torch.searchsorted(layout.other, layout.text).to(text.device)
                text = text.new_zeros(len(layout.other), text.shape[-1]).index_copy(0, place, text)
            text = text + other.to(text.device)
        cos, sin = rotary_tables(
            layout.position_ids,
            self.config.attention_head_dim,
            self.config.rope_theta,
            self.config.mrope_section,
            other.dtype,
        )
        return Context(layout, text, cos, sin)

    @apply_lora_scale("attention_kwargs")
    @fires_hooks
    def modulate(self, times: Tensor, attention_kwargs: dict[str, Any] | None = None) -> Modulation:
        """Compute what the times of a whole schedule ask of the layers: one product a layer for all steps.

        Where hooks bring the blocks to the device one by one, each is brought for this alone: better not done there.

        Args:
            times: (times,) in [0, 1].
            attention_kwargs: `{"scale": s}` scales LoRA adapters.

        Returns:
            The modulation for `velocity`, a row for each time, valid until the weights change.

        Raises:
            RuntimeError: a block or a final layer that is not this package's own.
        """
        if not all(hasattr(part, "modulation") for part in (*self.layers, self.final_layer)):
            raise RuntimeError("Layers were put in the place of the model's own: call `velocity` without a modulation.")
        check_autocast(self, times)
        conditioning = self._conditioning(times, self.dtype)
        rows = [with_hooks(block, block.modulation, conditioning) for block in self.layers]  # type: ignore[arg-type]
        return Modulation(
            blocks=torch.stack([own.to(conditioning.device) for own in rows]),
            final=with_hooks(self.final_layer, self.final_layer.modulation, conditioning),
        )

    @property
    def modulates_ahead(self) -> bool:
        """Whether steps may take what `modulate` computed: no layer of time was replaced, none must be seen called."""
        return (
            all(is_plain(block, Ideogram4TransformerBlock) for block in self.layers)
            and is_plain(self.final_layer, FinalLayer)
            and is_plain(self.t_embedding, TimeEmbedding)
            and not any(is_hooked(part) for layer in self.time_layers for part in modules_within(layer))
        )

    @property
    def time_layers(self) -> list[nn.Module]:
        """The layers that see nothing but times, of a model that `modulates_ahead`."""
        blocks = [block.adaln_modulation for block in self.layers]
        return [self.t_embedding, self.adaln_proj, *blocks, self.final_layer.adaln_modulation]  # type: ignore[list-item]

    def _conditioning(self, times: Tensor, dtype: torch.dtype) -> Tensor:
        return F.silu(self.adaln_proj(self.t_embedding(times, dtype)))

    def velocity(
        self,
        latents: Tensor,
        times: Tensor,
        context: Context,
        attention_kwargs: dict[str, Any] | None = None,
        modulation: Modulation | None = None,
    ) -> Tensor:
        """Predict the velocity of each image token of the stream; never waits for the device.

        It calls the model, so hooks on it see each pass, with the arguments of `forward`: `hidden_states` are the
        latents, `timestep` the times, `encoder_hidden_states` a `Prepared` with the context, ids and roles are None.
        The output is a tuple of the velocities; what a hook returns in its place is taken.

        Args:
            latents: (image_tokens, in_channels) noisy latents of the layout's image tokens, in stream order.
            times: (segments,) time of each segment in [0, 1]: 0 is pure noise, 1 is clean data.
            context: from `prepare`.
            attention_kwargs: passed to the attention processor; `{"scale": s}` scales LoRA adapters.
            modulation: what `modulate` gives for these times, one row for each segment; computed here if not given.

        Returns:
            (image_tokens, in_channels) velocities, data minus noise.

        Raises:
            ValueError: latents or times that do not match the context, or, where looking at them costs no wait (on the
                host), a time outside [0, 1] or NaN.
            TypeError: latents or times that are not floating-point tensors.
        """
        layout = context.layout
        check_float("latents", latents, {"image_tokens": len(layout.image), "in_channels": self.in_channels})
        check_float("times", times, {"segments": len(layout.lengths)})
        if is_readable(times):
            check_times("times", times)
        output = self(
            hidden_states=latents,
            timestep=times,
            encoder_hidden_states=Prepared(context, modulation),
            position_ids=None,
            segment_ids=None,
            indicator=None,
            attention_kwargs=attention_kwargs,
            return_dict=False,
        )
        return output if isinstance(output, Tensor) else output[0]

    def _velocity(
        self, latents: Tensor, times: Tensor, prepared: Prepared, attention_kwargs: dict[str, Any] | None
    ) -> Tensor:
        context, modulation = prepared.context, prepared.modulation
        if torch.compiler.is_exporting():  # what is traced must not be kept in the caller's layout
            context = replace(context, layout=replace(context.layout))
        layout = context.layout
        # No token asks the last block for more than its image tokens.
        hidden_states, conditioning = self._run(
            latents,
            times.to(latents.device),
            layout.segment,
            context,
            attention_kwargs,
            layout.image_bounds,
            modulation,
        )
        device = hidden_states.device
        final = None if modulation is None else modulation.final.to(device)
        return self.final_layer(hidden_states, conditioning, layout.image_segment.to(device), final)

    def _run(
        self,
        latents: Tensor,
        times: Tensor,
        time_of_token: Tensor,
        context: Context,
        attention_kwargs: dict[str, Any] | None,
        last_bounds: Bounds,
        modulation: Modulation | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Embed the stream and take it through the blocks.

        Returns:
            Hidden states (tokens, channels) of the tokens that `last_bounds` wants of the last block, and conditioning
            (times, adaln_dim), None where the modulation is given.
        """
        image_row = self.embed_image_indicator(torch.ones(1, dtype=torch.long, device=latents.device))
        image = self.input_proj(latents)
        # Hooks may have parts compute elsewhere than the inputs lie: what meets a part's output goes where that is.
        device = image.device
        layout = context.layout.to(device)
        image = image + image_row.to(device)
        hidden_states = torch.cat((context.text.to(device), image)).index_select(0, layout.order)

        conditioning = self._conditioning(times, latents.dtype).to(device) if modulation is None else None
        modulation = None if modulation is None else modulation.to(device)
        time_of_token = time_of_token.to(device)
        last_bounds = last_bounds.to(device)
        rotary = (context.cos.to(device), context.sin.to(device))
        stream = Stream(hidden_states, time_of_token)
        del hidden_states
        for number, block in enumerate(self.layers):
            bounds = last_bounds if block is self.layers[-1] else layout.bounds
            rows = None if modulation is None else modulation.blocks[number]
            inputs = (conditioning, time_of_token, rotary, bounds, attention_kwargs, rows)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                stream = Stream(self._gradient_checkpointing_func(block, stream.whole(), *inputs), time_of_token)
            elif takes_stream(block):
                block(stream, *inputs)
            else:
                stream = Stream(block(stream.whole(), *inputs), time_of_token)
        return stream.whole(), conditioning

    @apply_lora_scale("attention_kwargs")
    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        position_ids: Tensor,
        segment_ids: Tensor,
        indicator: Tensor,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Predict velocities for padded rows of packed samples.

        Args:
            hidden_states: (batch, length, in_channels) noisy latents; only those at image tokens are read.
            timestep: (batch,) or (batch, length) times in [0, 1]: 0 is pure noise, 1 is clean data.
            encoder_hidden_states: (batch, length, llm_features_dim) text features; only those at text tokens are read.
            position_ids: (batch, length, 3) positions on the axes (t, h, w).
            segment_ids: (batch, length) sample of each token; tokens of a row with one id attend to each other.
            indicator: (batch, length) role of each token: 3 text (`LLM_TOKEN_INDICATOR`), 2 image
                (`OUTPUT_IMAGE_INDICATOR`), anything else empty.
            attention_kwargs: passed to the attention processor; `{"scale": s}` scales LoRA adapters.
            return_dict: whether to return a `Transformer2DModelOutput` or a tuple.

        Returns:
            (batch, length, in_channels); only image tokens carry a meaning, and padding is zero.

        Raises:
            ValueError: shapes that do not match one another or the model, an empty sequence, or a time of a token that
                is outside [0, 1] or NaN.
            TypeError: latents, times or features that are not floating-point tensors, ids that are not integers.
        """
        check_autocast(self, hidden_states)
        if isinstance(encoder_hidden_states, Prepared):
            velocity = self._velocity(hidden_states, timestep, encoder_hidden_states, attention_kwargs)
            return Transformer2DModelOutput(sample=velocity) if return_dict else (velocity,)
        check_float("hidden_states", hidden_states, {"batch": None, "length": None, "in_channels": self.in_channels})
        rows = {"batch": hidden_states.shape[0], "length": hidden_states.shape[1]}
        if 0 in rows.values():
            raise ValueError(f"`hidden_states` has the shape {tuple(hidden_states.shape)}: the sequence is empty.")
        per_token = isinstance(timestep, Tensor) and timestep.ndim == 2
        check_float("timestep", timestep, rows if per_token else {"batch": rows["batch"]})
        check_float(
            "encoder_hidden_states", encoder_hidden_states, rows | {"llm_features_dim": self.config.llm_features_dim}
        )
        check_integer("position_ids", position_ids, rows | {"axes": 3})
        check_integer("segment_ids", segment_ids, rows)
        check_integer("indicator", indicator, rows)

        if torch.compiler.is_exporting():
            ids = (position_ids, segment_ids, indicator)
            velocity = velocity_of_rows(self, hidden_states, timestep, encoder_hidden_states, *ids, attention_kwargs)
            return Transformer2DModelOutput(sample=velocity) if return_dict else (velocity,)
        device = hidden_states.device
        encoder_hidden_states, timestep = encoder_hidden_states.to(device), timestep.to(device)
        layout, index = rows_to_layout(*(ids.to(device) for ids in (position_ids, segment_ids, indicator)))
        features = encoder_hidden_states.flatten(0, 1).index_select(0, index[layout.text])
        latents = hidden_states.flatten(0, 1).index_select(0, index[layout.image])
        times, time_of_token = distinct_times(timestep, index, rows["length"])

        context = self._prepare(features, layout)
        stream, conditioning = self._run(latents, times, time_of_token, context, attention_kwargs, layout.bounds)
        velocity = self.final_layer(stream, conditioning, time_of_token.to(stream.device))

        padded = velocity.new_zeros(hidden_states.shape).flatten(0, 1)
        output = padded.index_copy(0, index.to(velocity.device), velocity).view(hidden_states.shape)
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)
