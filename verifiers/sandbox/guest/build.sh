#!/bin/sh
# Rebuilds python.wasm.zst from the guest's sources. Needs Python 3.9 or later, the network once,
# and zstd. Builds are not bit-identical: hashes of sets and the like are baked into the snapshot,
# so a rebuilt component has another hash; the tests of this crate are what it must pass.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --require-hashes --only-binary :all: -r requirements.txt
# The tool writes bindings and byte code beside the sources: it works on a copy.
cp -r ./*.py wit "$work/"
cd "$work"
PYTHONHASHSEED=0 venv/bin/componentize-py -d wit -w python componentize app -o python.wasm
zstd -q -19 --force python.wasm -o "$OLDPWD/python.wasm.zst"
sha256sum "$OLDPWD/python.wasm.zst"
