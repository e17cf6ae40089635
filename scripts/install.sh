# Sourced by the other scripts: `install FILE ...` makes .venv and installs requirement files into it, unless that is done already.
# Sets PYTHON to the environment's interpreter and INSTALL_SECONDS to the time it took.

MIN_FREE_MB=3000

fail() {
    echo "$1" >&2
    exit 2
}

fits() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2> /dev/null
}

find_python() {
    local candidate
    for candidate in python3.11 python3.12 python3.13 python3; do
        if command -v "$candidate" > /dev/null && fits "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "Python 3.11, 3.12 or 3.13 is needed, and none of them is on the PATH."
}

# Runs a command that a signal to this script also ends.
run() {
    "$@" &
    child=$!
    wait "$child"
    local status=$?
    child=
    return $status
}

stop() {
    [ -z "${child:-}" ] || kill "$child" 2> /dev/null
    exit 130
}

# Where a copy of a requirements file is kept once it has been installed.
stamp() {
    echo ".venv/.installed-${1//\//-}"
}

installed() {
    local file
    for file in "$@"; do
        cmp -s "$file" "$(stamp "$file")" || return 1
    done
}

is_whole() {
    [ -f .venv/bin/activate ] && "$PYTHON" -m pip --version > /dev/null 2>&1
}

install() {
    local start=$SECONDS python free log
    INSTALL_SECONDS=0
    PYTHON=.venv/bin/python
    if [ -x "$PYTHON" ] && installed "$@"; then return 0; fi
    trap stop INT TERM
    [ ! -x "$PYTHON" ] || fits "$PYTHON" ||
        fail "The environment .venv has no Python 3.11, 3.12 or 3.13 that runs. Remove the folder and run this again."
    if ! is_whole; then
        free=$(df -Pm . | awk 'NR == 2 { print $4 }')
        [ "$free" -ge "$MIN_FREE_MB" ] || fail "The disk is full: $free MB are free here and about $MIN_FREE_MB MB are needed."
        python=$(find_python) || exit 2
        "$python" -c 'import venv, ensurepip' 2> /dev/null ||
            fail "$python has no venv module. On Debian and Ubuntu: apt install $("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
        echo "Making .venv with $("$python" --version) …"
        # What is left of one that was cut short is completed; one whose Python is gone is made anew.
        run "$python" -m venv $([ -x "$PYTHON" ] || echo --clear) .venv || fail "The environment .venv could not be made."
    fi
    echo "Installing $* into .venv (several minutes the first time) …"
    log=$(mktemp)
    rm -f .venv/.installed-* # of an environment that is half changed they would be wrong
    run "$PYTHON" -m pip install --disable-pip-version-check $(printf -- '-r %s ' "$@") 2> "$log" || {
        cat "$log" >&2
        ! grep -q "No space left" "$log" || fail "The disk is full: pip could not write to .venv."
        fail "pip could not install $*; its last lines above say why."
    }
    rm -f "$log"
    for file in "$@"; do cp "$file" "$(stamp "$file")"; done
    INSTALL_SECONDS=$((SECONDS - start))
    trap - INT TERM
}
