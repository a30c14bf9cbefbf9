#!/usr/bin/env bash
# Makes an environment with SPU, or says why there is none (exit 1). Without torch: Keyhole is read from the source tree.
#   private_environment.sh PYTHON FOLDER
set -uo pipefail
what=SPU constraints=constraints-private.txt platform="are tried"
. "$(dirname "$0")/environment.sh"

is_made && exit 0
begin
install spu jax numpy safetensors platformdirs typer rich pytest \
  || skip "the packages of $constraints cannot be installed"
finish
