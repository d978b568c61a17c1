#!/usr/bin/env bash
# The wheel by itself, without torch and vLLM:  pure.sh BASE
# On each supported Python that this machine has, the wheel that BASE builds is installed into BASE-pure-VERSION
# and the tests marked `pure` run against it; a Python that is not here is named and passed over.
set -euo pipefail
base=$1
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

find_python() {
  local candidate
  for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python; do
    if "$candidate" -c 'import ensurepip' 2>/dev/null; then echo "$candidate" && return; fi
  done
  return 1
}

"$base/bin/python" -m pip --disable-pip-version-check -q wheel --no-deps -w "$work" "$root"
cd "$root"
# A copy of the pure tests, beside which the source tree is not found in place of the wheel.
grep -rl --include='test_*.py' 'pytest\.mark\.pure' tests/unit | xargs cp --parents -t "$work"
cp --parents -t "$work" tests/conftest.py tests/unit/conftest.py examples/presets.yaml
printf '[pytest]\nmarkers =\n  pure\n  slow\n' > "$work/pytest.ini"
cd - >/dev/null

for version in 3.11 3.12 3.13; do
  if ! python=$(find_python "$version"); then
    printf '\n== Python %s is not on this machine: the wheel was not tried on it\n' "$version"
    continue
  fi
  venv=$base-pure-$version
  printf '\n== the wheel on %s, without torch and vLLM\n' "$("$python" --version)"
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  bin=$(cd "$venv/bin" && pwd)
  "$bin/python" -m pip --disable-pip-version-check -q install pytest hypothesis "$work"/*.whl
  "$bin/python" -m pip --disable-pip-version-check -q install --no-deps --force-reinstall "$work"/*.whl
  "$bin/python" -m pip check
  "$bin/python" -c 'import importlib.util as u; assert not u.find_spec("torch") and not u.find_spec("vllm")'
  "$bin/ksteer" --version
  (cd "$work" && PYTHONPATH='' "$bin/python" -m pytest -q -m pure -p no:cacheprovider tests)
done
