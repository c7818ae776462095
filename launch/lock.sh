#!/usr/bin/env bash
# Makes launch/locks/*.txt anew from launch/locks/*.in: the newest releases that fit together, for Linux on x86-64.
# `lock.sh 3.12 3.13` makes the locks of these Pythons only. Needs the package index; takes about a minute. Then:
# bash launch/test.sh python=3.13, and so on for each Python.
set -euo pipefail
locks=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/locks" && pwd)

# Made aside: uv would keep to the pins of a lock that it finds, and a failure midway must not leave half of a new set.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cp "$locks"/*.in "$scratch"
cd "$scratch"

if ! uv=$(type -P uv); then
  python3 -m venv venv
  venv/bin/pip install --quiet uv
  uv=venv/bin/uv
fi

# No header and no index in the files: they are the same whoever makes them, behind whichever mirror.
compile() { # lock, python version, uv's arguments...
  "$uv" pip compile --quiet --generate-hashes --no-emit-index-url --no-header \
    --python-version "$2" --python-platform x86_64-unknown-linux-gnu --output-file "$1.txt" "${@:3}"
}

# Leaves out of a lock the packages that another one pins.
without() { # other, lock
  awk '/^[^ #]/ { keep = 1; split($1, part, "=="); if (NR == FNR) pinned[part[1]]; else keep = !(part[1] in pinned) }
       NR != FNR && keep' "$1" "$2"
}

if (($#)); then
  cp "$locks/build.txt" .
else
  compile build 3.10 build.in
  compile horovod 3.10 --no-deps horovod.in
  set -- 3.10 3.11 3.12 3.13
fi
for version; do
  name=py${version/./}
  printf 'lock: %s\n' "$name" >&2
  # tf-keras asks for `tensorflow`, which would lay 600 MB of GPU build over the same files of tensorflow-cpu.
  compile "$name" "$version" -c build.txt --no-emit-package tensorflow "$name.in"
  compile all "$version" -c build.txt -c "$name.txt" test.in
  cat build.txt "$name.txt" >pinned
  without pinned all.txt >"$name-test.txt"
  rm all.txt
done
mv ./*.txt "$locks"
