"""What one guided step costs before anything is timed: FLOPs and bytes of each part, and the time that they bound.

For a transformer's sizes and a set of pictures, this counts the work of one step of both transformers by part, as five
implementations do it (text encoder, autoencoder and Euler update are not part of it):

  diffusers         the peer as it comes: text padded to 2048 tokens, a mask of all tokens by all tokens, the text
                    projection and the rotary tables at every step, for padding and image tokens too. Pictures of equal
                    size share a call; the unconditional transformer runs whatever the guidance.
  ~ trimmed         the same with `max_sequence_length` set to the longest caption of the call.
  ~ trimmed, fused  the same with each block compiled.
  ideoflow          segments only, all pictures in one stream for each transformer; text projection and rotary tables
                    once for each request; the last block computed only where its output is read, at image tokens.
  ~ fused           the same with each block compiled, or with the Triton kernels on a GPU.

Fused: one kernel for each chain of element-wise work between two products, which reads its inputs once and writes its
result once. Otherwise each operation of PyTorch reads and writes on its own.

Time: a part of one call takes as long as its matrix products at the machine's matrix rate, or as long as its bytes at
the memory's bandwidth, whichever is longer; parts follow one another. So it is a bound from below: kernels reach a part
of both rates. The machines' rates are their vendors' figures for dense products; headlines with sparsity are twice as
high. Bytes are those of tensors that an operation must read or write, each once: caches neither spare nor add any.
Operations outside products are counted (`vector`: one for each arithmetic operation and each exp, tanh and root; five
for each score of a softmax) but bound nothing, which holds on these GPUs and may not on a CPU. Left out: what does not
grow with tokens, times or weights, and copies that attention kernels make for themselves.

examples:
  python -m benchmarks.roofline                                    the full model, 1024 x 1024 pixels, 400 text tokens
  python -m benchmarks.roofline --machine h100 --sample 150,32,48  another picture: 150 text tokens, 512 x 768 pixels
  python -m benchmarks.roofline --sample 400,64,64 --sample 90,32,32 --sample 200,64,48,unguided
                                                                   three pictures that take a step together
  python -m benchmarks.roofline --tflops 120 --bandwidth 0.9       a machine of your own, in TFLOP/s and TB/s
  python -m benchmarks.roofline --measure --dtype float32          this machine, measured first (some seconds)
  python -m benchmarks.roofline --config transformer/config.json   another transformer
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks._measure import target, write

from .machines import MACHINES, Machine, measure
from .report import report, show
from .sizes import PEER_TEXT, Config, Sample


def parse_sample(text: str) -> Sample:
    """`TEXT,ROWS,COLS` or `TEXT,ROWS,COLS,unguided`."""
    head, *rest = text.split(",")
    guided = rest[-1:] != ["unguided"]
    try:
        tokens, (rows, cols) = int(head), map(int, rest if guided else rest[:-1])
        return Sample(tokens, rows, cols, guided)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not TEXT,ROWS,COLS or TEXT,ROWS,COLS,unguided: text tokens (0 or more), then rows and columns"
            " of image tokens, a side of the picture in pixels divided by 16 (1 or more); such as 400,64,64."
        ) from error


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; `machines` of the result holds those to predict for, unless this one is to be measured."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.roofline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, help="a transformer's config.json; the published sizes unless given")
    parser.add_argument(
        "--sample",
        type=parse_sample,
        action="append",
        metavar="TEXT,ROWS,COLS[,unguided]",
        help="a picture: text tokens, then sides in image tokens (pixels / 16); give several for one step of all of"
        " them; 400,64,64 unless given",
    )
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="weights and activations")
    parser.add_argument("--steps", type=int, default=48, help="steps of a picture (default: %(default)s)")
    parser.add_argument(
        "--machine",
        nargs="+",
        choices=list(MACHINES),
        help="machines with their vendors' dense bfloat16 figures; all of them unless given",
    )
    parser.add_argument("--tflops", type=float, help="matrix rate of your machine in TFLOP/s; needs --bandwidth")
    parser.add_argument("--bandwidth", type=float, help="memory bandwidth of your machine in TB/s; needs --tflops")
    parser.add_argument("--measure", action="store_true", help="measure this machine's rates and use those")
    parser.add_argument("--out", type=target, help="also write counts, by part and data type, and times as JSON")
    options = parser.parse_args(arguments)
    options.sample = options.sample or [Sample(400, 64, 64)]
    given = options.tflops is not None or options.bandwidth is not None
    if given and None in (options.tflops, options.bandwidth):
        parser.error("--tflops and --bandwidth describe one machine: give both")
    if given and min(options.tflops, options.bandwidth) <= 0:
        parser.error("--tflops and --bandwidth must be positive")
    if given + options.measure + bool(options.machine) > 1:
        parser.error("choose one: --machine, --measure, or --tflops with --bandwidth")
    if options.steps < 1:
        parser.error("--steps must be at least 1")
    if max(sample.text for sample in options.sample) > PEER_TEXT:
        parser.error(f"the peer takes captions of up to {PEER_TEXT} tokens")
    if given:
        yours = Machine("your machine", {options.dtype: options.tflops * 1e12}, options.bandwidth * 1e12)
        options.machines = [yours]
    elif options.dtype != "bfloat16" and not options.measure:
        parser.error("the machines' figures are for bfloat16; for float32 use --measure, or --tflops and --bandwidth")
    else:
        options.machines = [MACHINES[name] for name in options.machine or MACHINES]
    try:
        options.config = Config.of(json.loads(options.config.read_text())) if options.config else Config()
    except (OSError, ValueError) as error:
        parser.error(f"--config: {error}")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Count, predict, print and write."""
    options = parse(arguments)
    machines = [measure(options.config)] if options.measure else options.machines
    figures = report(options.config, options.sample, machines, options.dtype, options.steps)
    print(show(figures))
    write(figures, options.out)


if __name__ == "__main__":
    main()
