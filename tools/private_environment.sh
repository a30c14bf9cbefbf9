#!/usr/bin/env bash
# Makes an environment with SPU, or says why there is none (exit 1). One that is there is kept. Without torch: Keyhole
# is read from the source tree.
#   private_environment.sh PYTHON FOLDER
set -uo pipefail
python=$1 folder=$2
here=$(cd "$(dirname "$0")/.." && pwd)
wanted=$(cat "$here/constraints-private.txt" "$0" | cksum)

[ "$(cat "$folder/.made" 2> /dev/null)" = "$wanted" ] && exit 0

skip() {
  echo "skipped: no environment with SPU: $1"
  rm -rf "$folder"
  exit 1
}

[ "$(uname -sm)" = "Linux x86_64" ] || skip "its wheels are tried on Linux on x86-64, and this is $(uname -sm)"
rm -rf "$folder"
"$python" -m venv "$folder" || skip "$python -m venv failed"
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
  -c "$here/constraints-private.txt" spu jax numpy safetensors platformdirs typer rich pytest \
  || skip "the packages of constraints-private.txt cannot be installed"
echo "$wanted" > "$folder/.made"
