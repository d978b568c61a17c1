#!/usr/bin/env bash
# The page's tests drive Chromium. Install Debian's where there is none and we may; else those tests skip.
set -euo pipefail
for name in chromium chromium-browser google-chrome; do
  if command -v "$name" >/dev/null; then exit 0; fi
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  printf '\n== installing Chromium for the tests of the page\n'
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null
else
  echo "no Chromium here: the tests of the page will be skipped" >&2
fi
