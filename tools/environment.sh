# Sourced by the scripts that make an environment of their own, after these were set:
#   what, constraints, platform: what it is for, its file of versions, and why only Linux on x86-64 has it
# One that is there is kept, until its versions or its script change. Where it cannot be made: exit 1, with the reason.
python=$1 folder=$2
here=$(cd "$(dirname "$0")/.." && pwd)
wanted=$(cat "$here/$constraints" "$0" "$here/tools/environment.sh" | cksum)

is_made() {
  [ "$(cat "$folder/.made" 2> /dev/null)" = "$wanted" ]
}

skip() {
  echo "skipped: no environment with $what: $1"
  rm -rf "$folder"
  exit 1
}

begin() {
  [ "$(uname -sm)" = "Linux x86_64" ] || skip "its wheels $platform on Linux on x86-64, and this is $(uname -sm)"
  rm -rf "$folder"
  "$python" -m venv "$folder" || skip "$python -m venv failed"
}

install() {
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-input -c "$here/$constraints" "$@"
}

finish() {
  echo "$wanted" > "$folder/.made"
}
