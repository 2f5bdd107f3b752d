"""What must be plain to see in the states of the sketch model while it trains: linear read-outs and their truths.

Velocities alone teach positions and letters late. Losses of these read-outs make the reading half tell at each
element's closing token what the element is, and the transformer's image tokens know early where they lie and what
covers them. The read-outs are thrown away after training.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from ideoflow.sketch.masks import FONTS, OUTLINED, SHAPES
from ideoflow.sketch.scene import COLOURS, Element, Sample, rgb
from ideoflow.sketch.world import LETTERS

from .text import Places

FORMS = (*SHAPES, *(f"{shape} outline" for shape in OUTLINED))  # what a shape can look like
KINDS = (*FORMS, *(f"{font} word" for font in FONTS))
NAMES = (*COLOURS, "exact")
BACKGROUNDS = ("solid", "gradient vertical", "gradient horizontal", "stripes vertical", "stripes horizontal")
LONGEST = 5  # letters in a word
ITEMS = (*FORMS, *(f"{font} {letter}" for font in FONTS for letter in LETTERS), "nothing")  # what a token can show

cross_entropy = nn.functional.cross_entropy


class Truth:
    """What a picture's caption says, and what each of its image tokens shows, as numbers.

    Attributes:
        background: (3,) indices of its kind and of its two colours.
        boxes: (elements, 4) boxes in fractions of a side.
        colours: (elements, 3) red, green and blue in 0..1.
        labels: (elements, 2 + LONGEST) indices of the colour's name, the kind and the letters.
        letter_boxes: (letters, 4) the cells of the words' letters, in fractions of a side.
        letter_words: (letters, 4) the boxes of their words.
        letter_order: (letters,) which letter of its word each is.
        grid: rows and columns of image tokens.
    """

    def __init__(self, picture: Sample) -> None:
        self.picture = picture
        self.grid = (picture.height // 16, picture.width // 16)
        elements, letters = picture.elements, [(e, i) for e in picture.elements for i in range(len(e.word or ""))]
        names, background = list(COLOURS), picture.background
        kind = background.kind if background.kind == "solid" else f"{background.kind} {background.direction}"
        ends = (names.index(background.colours[i]) for i in (0, -1))
        self.background = torch.tensor([BACKGROUNDS.index(kind), *ends])
        self.boxes = torch.tensor([e.box for e in elements]) / 1000
        self.colours = torch.tensor([rgb(e.colour) for e in elements]) / 255
        self.labels = torch.tensor([
            [
                NAMES.index("exact" if e.exact else e.colour),
                KINDS.index(f"{e.font} word" if e.word else _form(e)),
                *(LETTERS.index(c) for c in (e.word or "")),
                *[len(LETTERS)] * (LONGEST - len(e.word or "")),
            ]
            for e in elements
        ])  # fmt: skip
        self.letter_boxes = torch.tensor([e.letters()[i][1] for e, i in letters]).reshape(-1, 4) / 1000
        self.letter_words = torch.tensor([e.box for e, _ in letters]).reshape(-1, 4) / 1000
        self.letter_order = torch.tensor([i for _, i in letters], dtype=torch.int64)

    @cached_property
    def places(self) -> Tensor:
        """(tokens, 2) the middle of each image token, in fractions of a side."""
        rows, cols = self.grid
        return torch.cartesian_prod((torch.arange(rows) + 0.5) / rows, (torch.arange(cols) + 0.5) / cols)

    @cached_property
    def shown(self) -> tuple[Tensor, Tensor, Tensor]:
        """What each image token shows most of.

        (tokens,) its index in `ITEMS`; (tokens, 4) how far its top, left, bottom and right lie from the token's middle,
        in tokens, outward positive; (tokens, 3) its colour in 0..1. The last two mean something where an item is shown.
        """
        return _shown(self.picture, self.grid)

    @property
    def letters(self) -> Tensor:
        """(tokens,) whether an image token shows a letter."""
        return (self.shown[0] >= len(FORMS)) & (self.shown[0] < len(ITEMS) - 1)

    @cached_property
    def ground(self) -> Tensor:
        """(tokens, 3) the background's mean colour at each image token, in 0..1."""
        return _ground(self.picture, self.grid)


def _form(element: Element) -> str:
    return f"{element.shape} outline" if element.outline else str(element.shape)


def _shown(picture: Sample, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """What each token shows: the shape or letter whose box shares most with it, its edges and its colour."""
    rows, cols = grid
    items: list[int] = []
    places: list[tuple[float, ...]] = []
    colours: list[tuple[int, ...]] = []
    for element in picture.elements:
        parts: list[tuple[str, tuple[float, ...]]] = [(_form(element), element.box)]
        if element.word:
            parts = [(f"{element.font} {letter}", box) for letter, box in element.letters()]
        for name, place in parts:
            items.append(ITEMS.index(name))
            places.append(place)
            colours.append(rgb(element.colour))
    boxes = torch.tensor(places) / 1000 * torch.tensor([rows, cols, rows, cols])  # in tokens
    top, left = torch.arange(rows).repeat_interleave(cols)[:, None], torch.arange(cols).repeat(rows)[:, None]
    tall = (torch.minimum(boxes[:, 2], top + 1) - torch.maximum(boxes[:, 0], top)).clamp_min(0)
    wide = (torch.minimum(boxes[:, 3], left + 1) - torch.maximum(boxes[:, 1], left)).clamp_min(0)
    shared, most = (tall * wide).max(1)
    middle = torch.cat([top, left, top, left], 1) + 0.5
    item = torch.where(shared > 0.02, torch.tensor(items)[most], len(ITEMS) - 1)
    edges = ((boxes[most] - middle) * torch.tensor([-1, -1, 1, 1])).clamp(-4, 4)
    return item, edges, torch.tensor(colours)[most] / 255


def _ground(picture: Sample, grid: tuple[int, int]) -> Tensor:
    rows, cols = grid
    drawn = picture.background.render(4 * cols, 4 * rows).reshape(rows, 4, cols, 4, 3).mean((1, 3)) / 255
    return torch.from_numpy(np.ascontiguousarray(drawn)).reshape(-1, 3)


class CaptionProbe(nn.Module):
    """Read-outs at the tokens of a caption: what each element is, and where each letter's word lies."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.box = nn.Linear(width, 4)
        self.colour = nn.Linear(width, 3)
        self.name = nn.Linear(width, len(NAMES))
        self.kind = nn.Linear(width, len(KINDS))
        self.letters = nn.Linear(width, LONGEST * (len(LETTERS) + 1))
        self.background = nn.Linear(width, len(BACKGROUNDS) + 2 * len(COLOURS))
        self.letter_word = nn.Linear(width, 4)
        self.letter_order = nn.Linear(width, LONGEST)

    def forward(self, states: Tensor, places: list[Places], truths: list[Truth]) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of the read-outs' losses; and errors for people: mean absolute ones of boxes and colours, wrong letters.

        Args:
            states: `(captions, longest, width)`.
            places: Where in each caption to read.
            truths: What to read there.
        """
        device = states.device
        background = self.norm(states[torch.arange(len(places)), [p.background for p in places]].float())
        drawn = self.background(background).split((len(BACKGROUNDS), len(COLOURS), len(COLOURS)), dim=-1)
        grounds = torch.stack([t.background for t in truths]).to(device)
        loss = sum((cross_entropy(d, grounds[:, i]) for i, d in enumerate(drawn)), torch.zeros((), device=device))

        closing = self.norm(torch.cat([s[p.closings] for s, p in zip(states, places, strict=True)]).float())
        labels = torch.cat([t.labels for t in truths]).to(device)
        box_error = (self.box(closing) - torch.cat([t.boxes for t in truths]).to(device)).abs().mean()
        colour_error = (self.colour(closing) - torch.cat([t.colours for t in truths]).to(device)).abs().mean()
        letters = self.letters(closing).unflatten(-1, (LONGEST, -1))
        loss = loss + cross_entropy(self.name(closing), labels[:, 0]) + cross_entropy(self.kind(closing), labels[:, 1])
        loss = loss + 2 * cross_entropy(letters.flatten(0, 1), labels[:, 2:].flatten())
        loss = loss + 10 * box_error + 5 * colour_error
        errors = {"box": box_error, "colour": colour_error}

        letter = self.norm(torch.cat([s[p.letters] for s, p in zip(states, places, strict=True)]).float())
        if len(letter):
            order = torch.cat([t.letter_order for t in truths]).to(device)
            word_error = (
                (self.letter_word(letter) - torch.cat([t.letter_words for t in truths]).to(device)).abs().mean()
            )
            loss = loss + 5 * word_error + 0.5 * cross_entropy(self.letter_order(letter), order)
            written = labels[:, 2:] < len(LETTERS)
            errors["letter"] = (letters.argmax(-1) != labels[:, 2:])[written].float().mean()
        return loss, {name: error.detach() for name, error in errors.items()}


class LayoutProbe(nn.Module):
    """Read-outs inside the transformer: where tokens lie, early, and what image tokens show, later."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.early_norm, self.late_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.place = nn.Linear(width, 2)
        self.letter = nn.Linear(width, 4)
        self.item = nn.Linear(width, len(ITEMS))
        self.edges = nn.Linear(width, 4)
        self.paint = nn.Linear(width, 3)
        self.ground = nn.Linear(width, 3)

    def forward(self, image: Tensor, letters: Tensor, late: Tensor, truths: list[Truth]) -> dict[str, Tensor]:
        """Mean absolute errors in fractions of a side, tokens (`edges`) or 0..1 (colours); cross-entropy of items.

        Args:
            image: `(image_tokens, width)` early states.
            letters: `(letters, width)` early states.
            late: `(image_tokens, width)` later states.
            truths: Of the pictures of the stream, in its order.
        """
        device, late = image.device, self.late_norm(late.float())
        places, ground = (torch.cat([getattr(t, name) for t in truths]).to(device) for name in ("places", "ground"))
        item, edges, paint = (torch.cat(parts).to(device) for parts in zip(*(t.shown for t in truths), strict=True))
        shown = item != len(ITEMS) - 1
        result = {
            "place": (self.place(self.early_norm(image.float())) - places).abs().mean(),
            "item": cross_entropy(self.item(late), item),
            "edges": (self.edges(late) - edges).abs()[shown].mean(),
            "paint": (self.paint(late) - paint).abs()[shown].mean(),
            "ground": (self.ground(late) - ground).abs().mean(),
        }
        if len(letters):
            cells = torch.cat([t.letter_boxes for t in truths]).to(device)
            result["letter"] = (self.letter(self.early_norm(letters.float())) - cells).abs().mean()
        return result
