"""A picture drawn by several processes: torchrun --nproc-per-node 2 examples/parallel.py --parallel guidance=2"""

import argparse
import json
from pathlib import Path

import torch

from ideoflow import save_image
from ideoflow.bundled import SKETCH_FOLDER
from ideoflow.distributed import ParallelConfig, parallel_pipeline

HEART = Path(__file__).parent / "captions" / "heart.json"

parser = argparse.ArgumentParser()
parser.add_argument("--parallel", type=ParallelConfig.parse, default="guidance=2")
parser.add_argument("--model", default=SKETCH_FOLDER)
parser.add_argument("--size", type=int, default=128)
parser.add_argument("--device", default="")
parser.add_argument("--out", default="heart.png")
options = parser.parse_args()

with parallel_pipeline(options.model, options.parallel, options.device) as pipe:
    if pipe is not None:  # in rank 0; the others follow it from here to the end of the block
        caption = json.loads(HEART.read_text(encoding="utf-8"))
        generator = torch.Generator().manual_seed(7)
        image = pipe(caption, options.size, options.size, preset="V4_TURBO_12", generator=generator).images[0]
        save_image(image, options.out)
