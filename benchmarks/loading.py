"""What loading a checkpoint of 1.2 GB takes in memory and time, in several forms, beside the peer's loader.

Run as `python -m benchmarks.loading`. A transformer with random weights is written in each form; each load happens in a
process of its own. Memory is the peak of the resident set (VmHWM) less what it was before loading; pages of a mapped
file count in it, though they can be dropped at any time. Sums of loaded weights are compared with what was written.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks._measure import machine, make_parser, write
from benchmarks.full.models import TINY
from ideoflow import Ideogram4Transformer2DModel
from tests.checkpoints.forms import float8_rows, original_weights

CONFIG: dict[str, Any] = dict(num_attention_heads=4, intermediate_size=4096, llm_features_dim=13312, num_layers=34)

LOAD = """
import json, re, sys, time, torch
which, path, dtype, options = sys.argv[1], sys.argv[2], getattr(torch, sys.argv[3]), json.loads(sys.argv[4])
if which == "ours":
    from ideoflow import Ideogram4Transformer2DModel as Model
    import ideoflow.checkpoints.pretrained
else:
    from diffusers import Ideogram4Transformer2DModel as Model

def status(key):
    return int(re.search(key + r":\\s*(\\d+)", open("/proc/self/status").read())[1]) * 1024

open("/proc/self/clear_refs", "w").write("5")  # the peak so far is forgotten
before, start = status("VmRSS"), time.perf_counter()
model = Model.from_pretrained(path, torch_dtype=dtype, **options)
seconds = time.perf_counter() - start
peak = status("VmHWM") - before
tensors = [*model.parameters(), *model.buffers()]
resident = sum(t.numel() * t.element_size() for t in tensors)
sums = {name: tensor.double().sum().item() for name, tensor in model.state_dict().items() if "norm" in name}
print(json.dumps({"peak": peak, "resident": resident, "seconds": seconds, "sums": sums}))
"""


@dataclass(frozen=True)
class Case:
    form: str
    dtype: str
    options: dict[str, Any]
    sides: tuple[str, ...]


CASES = (
    Case("peer", "bfloat16", {}, ("ours", "peer")),
    Case("peer", "float32", {}, ("ours", "peer")),
    Case("shards", "float32", {}, ("ours", "peer")),
    Case("original", "bfloat16", {}, ("ours",)),
    Case("fp8", "bfloat16", {}, ("ours",)),
    Case("fp8", "bfloat16", {"dequantize": True}, ("ours",)),
)


def write_forms(folder: Path, config: dict[str, Any]) -> dict[str, float]:
    """One model in every form, in folders of the forms' names; sums of its norms' weights."""
    with torch.device("meta"):
        model = Ideogram4Transformer2DModel(**config)
    generator = torch.Generator().manual_seed(0)
    model = model.to_empty(device="cpu").to(torch.bfloat16)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.02, generator=generator)
    model.save_pretrained(folder / "peer", max_shard_size="100GB")
    model.save_pretrained(folder / "shards", max_shard_size="300MB")
    settings = (folder / "peer" / "config.json").read_text()
    weights = model.state_dict()
    eight = float8_rows(weights, lambda name: name.startswith("layers."))
    for form, stored in (("original", original_weights(weights)), ("fp8", eight)):
        (folder / form).mkdir()
        save_file(stored, folder / form / "model.safetensors")
        (folder / form / "config.json").write_text(settings)
    return {name: tensor.double().sum().item() for name, tensor in weights.items() if "norm" in name}


def load(side: str, folder: Path, case: Case) -> dict[str, Any]:
    """Peak and resident bytes and seconds of one load in a process of its own."""
    arguments = [side, str(folder / case.form), case.dtype, json.dumps(case.options)]
    done = subprocess.run([sys.executable, "-c", LOAD, *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(folder: Path, config: dict[str, Any], repeats: int, cases: int) -> list[dict[str, Any]]:
    """A row for each case and side: medians."""
    sums = write_forms(folder, config)
    rows = []
    for case in CASES[:cases]:
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in case.sides}
        for _ in range(repeats):
            for side in case.sides:
                runs[side].append(load(side, folder, case))
        for side, own in runs.items():
            if any(not math.isclose(run["sums"][name], sums[name], rel_tol=1e-6) for run in own for name in sums):
                raise SystemExit(f"{case.form}: {side} loaded other weights")
            rows.append(
                {
                    "form": case.form,
                    "dtype": case.dtype,
                    "options": case.options,
                    "side": side,
                    "file_bytes": sum(file.stat().st_size for file in (folder / case.form).glob("*.safetensors")),
                    "resident_bytes": own[0]["resident"],
                    "peak_bytes": max(run["peak"] for run in own),
                    "seconds": statistics.median(run["seconds"] for run in own),
                }
            )
            row = rows[-1]
            extra = (row["peak_bytes"] - row["resident_bytes"]) / 1e6
            kept = " expanded" if case.options else ""
            print(
                f"{case.form + kept:14} as {case.dtype:9} {side:5} resident {row['resident_bytes'] / 1e6:6.0f} MB, peak"
                f" {row['peak_bytes'] / 1e6:6.0f} MB ({extra:+5.0f}), {row['seconds']:5.2f} s",
                flush=True,
            )
    return rows


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--layers", type=int, default=CONFIG["num_layers"], help="34 make a file of 1.2 GB")
    parser.add_argument("--tiny", action="store_true", help="a model of next to nothing, to see that it runs")
    parser.add_argument("--repeats", type=int, default=3, help="loads of each form and side (%(default)s)")
    parser.add_argument("--cases", type=int, default=len(CASES), help="the first so many (%(default)s)")
    arguments = parser.parse_args()
    print(json.dumps(machine()))
    with tempfile.TemporaryDirectory() as folder:
        config = TINY if arguments.tiny else {**CONFIG, "num_layers": arguments.layers}
        rows = measure(Path(folder), config, arguments.repeats, arguments.cases)
    write({"machine": machine(), "rows": rows}, arguments.out)


if __name__ == "__main__":
    main()
