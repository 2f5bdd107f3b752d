#!/usr/bin/env bash
# Everything that only a GPU can show, in one go: kernels against float64, then all GPU benchmarks, into
# benchmarks/results/*-gpu.json. Needs a CUDA build of torch with Triton, pytest and this package; half an hour on an H200.
# A part that fails does not stop the rest: the exit status says whether any did.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python}
results=benchmarks/results
failed=()

part() {
    local name=$1
    shift
    echo "== $name: $*"
    "$@" || failed+=("$name")
}

"$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' || {
    echo "torch sees no GPU here" >&2
    exit 1
}
part "kernels, exact" "$python" -m pytest -q tests/model/kernels
part "transformer, exact" "$python" -m pytest -q tests/model/test_exactness.py tests/model/test_features.py
part "kernels, timed" "$python" -m benchmarks.kernels --out "$results/kernels-gpu.json"
part "count" "$python" -m benchmarks.roofline --measure --out "$results/roofline-gpu.json"
part "full model" "$python" -m benchmarks.full --out "$results/full-gpu.json"
if ((${#failed[@]})); then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
