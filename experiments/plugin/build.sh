#!/bin/sh
# Makes roman.wasm of roman.py. Needs Python 3.9 or later and the network once.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet componentize-py==0.25.1
cp roman.py "$work/"
cp -r ../../verifiers/sandbox/wit "$work/"
cd "$work"
venv/bin/componentize-py -d wit -w both componentize roman -o roman.wasm
cp roman.wasm "$OLDPWD/roman.wasm"
