"""The sketch model's reading half: its tokenizer, its small Qwen3-VL, and how that is trained on captions alone.

The published pipelines tap decoder layers 0, 3, ..., 33, 35, so the model must have 36. Only `TRAINED` of them compute
anything: the others have zero output projections, which makes them exact identities, and training skips them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextDecoderLayer, Qwen3VLTextRotaryEmbedding

from ideoflow.sketch.wording import line
from ideoflow.sketch.world import sample
from ideoflow.text_encoder import TAPS

LAYERS = 36
TRAINED = (0, 3, 6, 9)
TEXT_CONFIG = dict(
    hidden_size=128,
    intermediate_size=128,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=2048,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]},
)

USER, ASSISTANT, PAD = "<|user|>", "<|assistant|>", "<|pad|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|user|>"
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# The fixed parts of a caption's line, one token each, so that a line costs about one token a word or number.
STRUCTURE = (
    '{"high_level_description":"', '"style_description":{"aesthetics":"', '{"style_description":{"aesthetics":"',
    '","lighting":"', '","photo":"', '","medium":"', '","art_style":"', '","color_palette":["', '","desc":"',
    '"compositional_deconstruction":{"background":"', '{"compositional_deconstruction":{"background":"',
    '","elements":[', '{"type":"obj","bbox":[', '{"type":"text","bbox":[', '],"desc":"', '],"text":"',
    '","', '",', '"}', '"]}', "]}}",
)  # fmt: skip
# A box's number with its comma, a byte of a colour, a word, one capital, one digit or one mark: never more than one
# thing to a token.
PIECES = (
    r"#[0-9A-F]{2}|(?<=#[0-9A-F]{2})[0-9A-F]{2}|(?<=#[0-9A-F]{4})[0-9A-F]{2}"
    r"|[0-9]+,|(?<=,)[0-9]+|[0-9]| ?[A-Z]?[a-z]+| ?[A-Z]| ?[^\sA-Za-z0-9]|\s+"
)


def build_tokenizer(captions: int = 4000) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer fitted to the first `captions` training captions, with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PIECES), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[PAD, USER, ASSISTANT],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_words(captions), trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in STRUCTURE])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, chat_template=CHAT_TEMPLATE)


def _words(captions: int) -> Iterable[str]:
    """Every string of the captions apart from the fixed parts, and all numbers and colour bytes, twice each."""
    for index in range(captions):
        yield from _strings(sample(index).caption)
    for _ in range(2):
        yield from (f"{number}{end}" for number in range(0, 1001, 25) for end in ("", ","))
        yield from (f"#{value:02X}{value:02X}" for value in range(256))


def _strings(value: object) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def encoder_config(vocabulary: int) -> Qwen3VLConfig:
    """A Qwen3-VL whose language model is `TEXT_CONFIG` and whose vision tower is as small as it can be."""
    vision = dict(
        depth=1, hidden_size=4, intermediate_size=4, num_heads=1, out_hidden_size=TEXT_CONFIG["hidden_size"],
        patch_size=2, num_position_embeddings=4, deepstack_visual_indexes=[],
    )  # fmt: skip
    text = {**TEXT_CONFIG, "vocab_size": vocabulary}
    return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)


class Reader(nn.Module):
    """The layers of the text encoder that compute something, for training."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        config = encoder_config(vocabulary).text_config
        config._attn_implementation = "sdpa"
        self.config = config
        self.embed_tokens = nn.Embedding(vocabulary, config.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, std=0.5)
        self.layers = nn.ModuleList(Qwen3VLTextDecoderLayer(config, i) for i in TRAINED)
        self.rotary_emb = Qwen3VLTextRotaryEmbedding(config)

    def forward(self, token_ids: list[Tensor]) -> list[Tensor]:
        """Outputs of each trained layer, `(captions, longest, width)`.

        Captions are padded on the right here, which a causal model cannot see.
        """
        hidden = self.embed_tokens(pad_sequence(token_ids, batch_first=True).to(self.embed_tokens.weight.device))
        positions = torch.arange(hidden.shape[1], device=hidden.device).expand(3, hidden.shape[0], -1)
        rotary = self.rotary_emb(hidden, positions)
        outputs = []
        for layer in self.layers:
            hidden = layer(hidden, position_embeddings=rotary, attention_mask=None)
            outputs.append(hidden)
        return outputs

    @torch.no_grad()
    def export(self) -> Qwen3VLModel:
        """The 36-layer model that computes the same features: every untrained layer is an identity."""
        model = Qwen3VLModel(encoder_config(self.config.vocab_size)).eval()
        text = model.language_model
        text.embed_tokens.weight.copy_(self.embed_tokens.weight)
        for index, layer in enumerate(text.layers):
            if index in TRAINED:
                layer.load_state_dict(self.layers[TRAINED.index(index)].state_dict())
            else:
                nn.init.zeros_(layer.self_attn.o_proj.weight)
                nn.init.zeros_(layer.mlp.down_proj.weight)
        return model


def features(outputs: list[Tensor], lengths: list[int]) -> Tensor:
    """The captions' features in one stream, `(tokens, width * 13)`, as the pipeline taps them from all 36 layers."""
    valid = (torch.arange(outputs[0].shape[1]) < torch.tensor(lengths)[:, None]).to(outputs[0].device)
    seen = [sum(layer <= tap for layer in TRAINED) - 1 for tap in TAPS]  # the last trained layer at each tap
    tapped = [output[valid] for output in outputs]
    return torch.stack([tapped[i] for i in seen], dim=-1).flatten(1)  # channel * taps + tap


@dataclass(frozen=True)
class Places:
    """Where in a caption's tokens the read-outs read.

    Attributes:
        background: the token that ends the background's description.
        closings: (elements,) the token that ends each element.
        letters: (letters,) the tokens of the words' letters, in the order of the elements.
    """

    background: int
    closings: Tensor
    letters: Tensor


class Encoder:
    """Captions to token ids as the pipeline makes them, and where the read-outs read."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.opening, self.text, self.description = (
            tokenizer.convert_tokens_to_ids(token) for token in ('","elements":[', '],"text":"', '","desc":"')
        )
        self.closing = [tokenizer.convert_tokens_to_ids(token) for token in ('"}', '"]}')]

    def __call__(self, caption: dict) -> tuple[Tensor, Places]:
        """Token ids `(tokens,)`, and their places."""
        text = f"{USER}{line(caption)}{ASSISTANT}"
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        start = ids.index(self.opening)
        closings = [i for i in range(start, len(ids)) if ids[i] in self.closing]
        letters: list[int] = []
        for begin in (i for i in range(start, len(ids)) if ids[i] == self.text):
            letters += range(begin + 1, ids.index(self.description, begin))
        return torch.tensor(ids), Places(start, torch.tensor(closings), torch.tensor(letters, dtype=torch.int64))
