"""What asking costs whether weights are still what they were, beside encoding a caption and taking a step.

Run as `python -m benchmarks.caption_cache`. The bundled model, then a tensor of `--gigabytes` in bfloat16, whose speed
tells what the 15 GB of the published text encoder take on this machine.
"""

from __future__ import annotations

import statistics

import torch

from benchmarks._measure import alternate, machine, make_parser, publish
from ideoflow import Caption, sketch
from ideoflow.ops.weights import _checksums, snapshot
from ideoflow.text_encoder import encode_tokens, tokenise

TEXT_ENCODER = 7.57e9 * 2  # bytes of the published language model in bfloat16
CAPTION = Caption.from_text("a red circle above a blue square on a white background")


def main() -> None:
    """Measure, print, and write the figures."""
    parser = make_parser(__doc__, rounds=9)
    parser.add_argument("--gigabytes", type=float, default=0.5, help="size of the tensor that is read (%(default)s)")
    parser.add_argument("--pixels", type=int, default=128, help="side of the picture of the step (%(default)s)")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = sketch.load().to(device)
    large = torch.ones(int(options.gigabytes * 5e8), dtype=torch.bfloat16, device=device)
    ids = tokenise(pipe.tokenizer, [CAPTION.line()])
    side = options.pixels
    requests = pipe.make_requests(CAPTION, side, side, options.rounds + 2, guidance_scale=3, guidance_schedule=None)
    engine = pipe.engine()
    sides = {
        "asking for a call": lambda: pipe._embedder(None)._made_by(),
        "asking for a step": lambda: snapshot(pipe.transformer.time_layers),
        "encoding a caption": lambda: encode_tokens(pipe.text_encoder, ids, pipe.taps),
        "a guided step": lambda: engine.advance(requests),
        "reading the large tensor": lambda: _checksums([large]),
    }
    seconds = {name: statistics.median(own) for name, own in alternate(sides, options.rounds).items()}
    rate = large.nbytes / seconds["reading the large tensor"]
    report = {
        "benchmark": "caption_cache",
        "machine": machine(),
        "seconds": seconds,
        "bytes_a_second": rate,
        "seconds_for_the_published_text_encoder": TEXT_ENCODER / rate,
    }
    publish(report, options.out)


if __name__ == "__main__":
    main()
