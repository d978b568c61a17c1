#!/usr/bin/env bash
# Make the environment of the converters' parity tests:  parity.sh BASE VENV
# It holds the packages whose files `ksteer convert` reads, and sees everything of the environment BASE beneath
# them (torch, transformers, our own package). BASE itself is not touched: their declared requirements, which
# would bring other releases of what BASE has, are left out, and what they really import beside it is named here.
set -euo pipefail
base=$1 venv=$2

printf '\n== making %s: the packages whose files the converters read (about 100 MB, under a minute)\n' "$venv"
rm -rf "$venv"
"$base/bin/python" -m venv "$venv"
site() { "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
echo "import site; site.addsitedir('$(cd "$(site "$base")" && pwd)')" > "$(site "$venv")/zz_base.pth"
"$venv/bin/python" -m pip --disable-pip-version-check -q install --no-deps \
  k-steering==0.1.2 \
  pyreft==0.1.0 pyvene==0.1.8 \
  repeng==0.4.0 \
  sae-lens==6.54.12 transformer-lens==3.9.0 better-abc==0.0.3 jaxtyping==0.3.11 simple-parsing==0.1.9 wandb==0.31.0 \
  steering-vectors==0.12.2
