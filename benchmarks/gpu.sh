#!/usr/bin/env bash
# Compare two commits on one GPU, in at most eight minutes: forward, step with and without CUDA graph, each loss, drift of 200
# images, whole runs, the kernels' tests, and a run that is killed and resumed. Needs no network; images are generated.
#
#   benchmarks/gpu.sh [BASE [NEW]]
#
# BASE is a commit or a folder with a checkout (default 17cd197). NEW is the same (default: this working tree).
# The table goes to standard output, and with every round to $OUT/gpu.json (default: benchmarks/results).
# GPU_SH_TINY=1 runs a tiny setting, also on a CPU, to try the script out. PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

if ! "$python" -c 'import torch' 2>/dev/null; then
  echo "gpu.sh: $python has no torch; name an interpreter that has torch and attndrift's dependencies: PYTHON=... benchmarks/gpu.sh" >&2
  exit 1
fi
if [ "${GPU_SH_TINY:-0}" != 1 ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "gpu.sh: torch sees no GPU here; GPU_SH_TINY=1 tries the script out on a CPU" >&2
  exit 1
fi

scratch=$(mktemp -d)
worktrees=()
clean() {
  for one in ${worktrees[@]+"${worktrees[@]}"}; do git worktree remove --force "$one"; done
  rm -rf "$scratch"
}
trap clean EXIT

# Sets $folder to the checkout of $1, a folder or a commit.
checkout() {
  if [ -d "$1/src/attndrift" ]; then
    folder=$(cd "$1" && pwd)
    return
  fi
  folder=$scratch/$2
  if ! git worktree add --quiet --detach "$folder" "$1"; then
    echo "gpu.sh: no checkout of $1 can be made here; name a folder that holds one: benchmarks/gpu.sh BASE_FOLDER [NEW]" >&2
    exit 1
  fi
  worktrees+=("$folder")
}

checkout "${1:-17cd197}" base
base=$folder
checkout "${2:-.}" new
new=$folder

export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false MPLBACKEND=Agg
PYTHONPATH=$new/src "$python" -m benchmarks.gpu "$base" "$new" --output "${OUT:-benchmarks/results}/gpu.json"
