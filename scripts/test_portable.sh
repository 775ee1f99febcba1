#!/usr/bin/env bash
# The tests of numbers (marker `numerics`) as other processors would compute them: `make test-portable`.
# usage: scripts/test_portable.sh PYTHON [options of pytest]; the log of each setting is in runs/test-portable
set -uo pipefail
cd "$(dirname "$0")/.."
python=$1
shift
logs=runs/test-portable
mkdir -p "$logs"
# Three libraries choose kernels by themselves: torch, oneDNN and MKL. The first three settings are processors without
# AVX2, with it, and with AVX-512; the others change one library alone, which no processor does, and use two threads.
settings=(
    "ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE OMP_NUM_THREADS=1"
    "ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_CBWR=AVX2 OMP_NUM_THREADS=1"
    "ATEN_CPU_CAPABILITY=avx512 ONEDNN_MAX_CPU_ISA=AVX512_CORE OMP_NUM_THREADS=1"
    "ATEN_CPU_CAPABILITY=default OMP_NUM_THREADS=2"
    "ATEN_CPU_CAPABILITY=avx2 OMP_NUM_THREADS=2"
    "ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=2"
    "ONEDNN_MAX_CPU_ISA=AVX512_CORE OMP_NUM_THREADS=2"
)
failed=0
for setting in "${settings[@]}"; do
    log="$logs/${setting// /,}.log"
    # shellcheck disable=SC2086  # a setting is several words
    env $setting HF_HUB_OFFLINE=1 WANDB_MODE=offline "$python" -m pytest -q -m numerics "$@" >"$log" 2>&1 || failed=1
    printf '%-90s %s\n' "$setting" "$(tail -n 1 "$log")"
    grep '^FAILED\|^ERROR' "$log" | sed 's/^/    /'
done
exit $failed
