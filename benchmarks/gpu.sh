#!/usr/bin/env bash
# Everything that only a GPU can show, in one go: kernels, transformer, low precision and graphs against their oracles,
# then all GPU benchmarks at full size, into benchmarks/results/*-gpu.json, and what each part printed beside them.
#
# Needs a GPU of 80 GB, a CUDA build of torch with Triton, and this package with its development dependencies. Its tests and
# the full model were run on an H100 one by one (docs/performance.md), not this script as a whole: by that GPU's rates, the
# tests should take ten minutes, kernels, rates and attention five, the full model an hour and a half, of which the cases of
# the bars, which come first, half an hour.
#
# For a GPU that is at hand for minutes, `MINUTES=8 benchmarks/gpu.sh` runs what is worth most, in that order, within
# these minutes, and keeps all in one file, gpu-minutes.json (`python -m benchmarks.gpu --help`; --list says what it
# runs). Parts can be named: `benchmarks/gpu.sh bars graphs`. What follows is of the whole run, without MINUTES.
#
# A part that fails does not stop the rest. What was measured is kept whenever it stops. The exit status is 0 if all parts
# went well, 1 if one failed or was not finished, 2 if there is no GPU. From the environment:
#   PYTHON     the interpreter (python)
#   OUT        the folder for all that is written (benchmarks/results; with TINY outputs/gpu-tiny)
#   RESUME=1   leave out the parts that went well before, and go on with the full model where it was stopped
#   MINUTES=n  the most worth, in so many minutes
#   WHEELS=dir install the wheels of this folder beside the results first, without a network: what the interpreter
#              lacks but torch. To make one: pip download -d wheels -c requirements/constraints.txt '.[dev]', and delete
#              torch, triton and nvidia-* from it
#   TINY=1     on any machine, every part at its smallest and the tests only collected: shows that this script works
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python} tiny=${TINY:-} resume=${RESUME:-}
out=${OUT:-$([[ $tiny ]] && echo outputs/gpu-tiny || echo benchmarks/results)}
logs=$out/gpu-logs
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
export PYTHONPATH=$PWD/src${PYTHONPATH:+:$PYTHONPATH}
failed=0 summary=()

if [[ ${WHEELS:-} ]]; then
    mkdir -p "$out/site"
    "$python" -m pip install --quiet --no-index --no-deps --upgrade --target "$out/site" "$WHEELS"/*.whl || exit 1
    PYTHONPATH=$(cd "$out/site" && pwd):$PYTHONPATH
fi
if [[ ${MINUTES:-} || $# -gt 0 ]]; then
    where=(--out "$out/gpu-minutes.json")
    [[ $tiny ]] && where+=(--device cpu --tiny)
    exec "$python" -m benchmarks.gpu --minutes "${MINUTES:-8}" "${where[@]}" "$@"
fi

# Runs a command as a part, under the name of its log.
part() {
    local name=$1 begun=$SECONDS status
    shift
    if [[ $resume && -e $logs/$name.done ]]; then
        summary+=("$name: done before")
        return
    fi
    rm -f "$logs/$name.done"
    echo "== $name: $*"
    "$@" 2>&1 | tee "$logs/$name.log"
    status=${PIPESTATUS[0]}
    if ((status == 3)); then
        failed=1
        summary+=("$name: not finished after $((SECONDS - begun)) s, RESUME=1 goes on")
    elif ((status)); then
        failed=1
        summary+=("$name: FAILED with status $status after $((SECONDS - begun)) s, see $logs/$name.log")
    else
        touch "$logs/$name.done"
        summary+=("$name: ok, $((SECONDS - begun)) s")
    fi
}

tests() {
    local name=$1
    shift
    part "$name" "$python" -m pytest -q ${tiny:+--collect-only} "$@"
}

benchmark() {
    local name=$1
    shift
    part "$name" "$python" -m "benchmarks.$name" --out "$out/$name-gpu.json" "$@"
}

finish() {
    {
        echo "== summary"
        printf '%s\n' "${summary[@]}"
        [[ -e $logs/full.log ]] && sed -n '/^bar /,$p' "$logs/full.log"
    } | tee "$logs/summary.txt"
}

if [[ ! $tiny ]] && ! "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())'; then
    echo "torch sees no GPU here; TINY=1 shows on any machine that this script works" >&2
    exit 2
fi
mkdir -p "$logs"
trap finish EXIT
trap 'summary+=("stopped"); exit 1' INT TERM

tests test-kernels tests/ops/kernels
tests test-transformer tests/model/test_device.py tests/model/test_exactness.py tests/model/test_features.py
tests test-precision tests/ops/quantized
tests test-graphs tests/engine/test_graphs.py tests/engine/test_cuda_graph.py tests/engine/test_graphs_cuda.py
benchmark kernels ${tiny:+--tokens 256 --rounds 1}
benchmark roofline --measure
benchmark attention ${tiny:+--backends --tiny --rounds 1}
benchmark memory --device "$([[ $tiny ]] && echo cpu || echo cuda)" ${tiny:+--small --cases 1 --pixels 64}
benchmark full ${resume:+--resume} ${tiny:+--tiny --rounds 1 --steps 2 --no-compile}
exit "$failed"
