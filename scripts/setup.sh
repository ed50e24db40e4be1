#!/usr/bin/env bash
# Makes the environment ready, once; a later call takes a moment. Every script sources it:
#
#     source scripts/setup.sh                     # into the current bash, from any folder
#     bash scripts/setup.sh [--with open-clip]    # set up only; --with adds an extra of setup.py (several: a,b)
#
# Which environment: the one that LLAVA_PAT_VENV names (made if absent; clones may share it); else an active one that
# already has llava_pat (taken as it is); else .venv in this clone. Versions: scripts/requirements.txt.
# LLAVA_PAT_PYTHON names the python that makes a new environment, LLAVA_PAT_WITH the extras when this file is sourced.

LLAVA_PAT_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

_lp_say() { echo "[setup] $*" >&2; }

_lp_find_python() {  # the first python >= 3.10 that can make environments
    local candidate candidates=(python3 python3.12 python3.11 python3.13 python3.10 python)
    if [[ -n "${LLAVA_PAT_PYTHON:-}" ]]; then candidates=("$LLAVA_PAT_PYTHON"); fi
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            command -v "$candidate"
            return 0
        fi
    done
    _lp_say "no python >= 3.10 with venv and ensurepip among: ${candidates[*]} (python3 is: $(python3 --version 2>&1 || true))."
    _lp_say "Install one (Debian: apt install python3 python3-venv;"
    _lp_say "conda: conda create -n llava-pat python=3.11) or name it: LLAVA_PAT_PYTHON=/path/to/python3"
    return 1
}

_lp_has_gpu() { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; }

_lp_check_disk() {  # folder, extras
    local need=4 free
    if _lp_has_gpu || [[ "$2" == *open-clip* || "$2" == *lmms* ]]; then need=10; fi
    free=$(df -Pk "$1" | awk 'NR == 2 { print int($4 / 1048576) }')
    if ((free < need)); then
        _lp_say "$1 has $free GB free, the environment needs about $need GB."
        _lp_say "Free some, or put it elsewhere: LLAVA_PAT_VENV=/big/disk/venv"
        return 1
    fi
}

_lp_install() {  # environment, wanted stamp, extras. Runs under the lock.
    local venv="$1" stamp="$2" extras="$3" python index=() pair=()
    local stamp_file="$venv/.llava_pat-stamp${extras:+-$extras}"
    if [[ -f "$stamp_file" && "$(<"$stamp_file")" == "$stamp" ]]; then return 0; fi  # another call was faster
    _lp_check_disk "$venv" "$extras" || return 1
    if [[ ! -x "$venv/bin/python" || ! -x "$venv/bin/pip" ]]; then
        python="$(_lp_find_python)" || return 1
        _lp_say "making an environment in $venv with $("$python" --version)"
        "$python" -m venv "$venv" >&2 || return 1
    fi
    if ! "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
        _lp_say "$venv has $("$venv/bin/python" --version), 3.10 or later is needed: remove it, or name another by LLAVA_PAT_VENV"
        return 1
    fi
    if [[ "$(uname -s)" == Linux ]] && ! _lp_has_gpu && "$venv/bin/python" -c \
        'import urllib.request as u; u.urlopen("https://download.pytorch.org/whl/cpu/torch/", timeout=5)' 2>/dev/null; then
        index=(--extra-index-url https://download.pytorch.org/whl/cpu)  # PyPI's build brings 3 GB of CUDA along
    fi
    _lp_say "installing scripts/requirements.txt (a minute or a few)"
    # ${index[@]+...}: an empty array is an unbound variable for bash < 4.4 under `set -u`
    "$venv/bin/python" -m pip install --disable-pip-version-check ${index[@]+"${index[@]}"} \
        -r "$LLAVA_PAT_ROOT/scripts/requirements.txt" >&2 || { _lp_say "pip failed (above); run it again to go on"; return 1; }
    # In a shared environment the first clone stays installed; PYTHONPATH makes every script run its own clone.
    if ! (cd / && env -u PYTHONPATH "$venv/bin/python" -c 'import llava_pat') 2>/dev/null; then
        "$venv/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation \
            -e "$LLAVA_PAT_ROOT" >&2 || return 1
    fi
    if [[ -n "$extras" ]]; then
        _lp_say "installing the extras $extras"
        # Three equal signs leave out "+cpu": torchvision has no CPU build for this torch, and its import dies beside one.
        if [[ "$extras" == *open-clip* || "$extras" == *lmms* ]]; then pair=("torch===2.13.0"); fi
        "$venv/bin/python" -m pip install --disable-pip-version-check --no-build-isolation \
            ${pair[@]+"${pair[@]}"} -e "$LLAVA_PAT_ROOT[$extras]" >&2 || { _lp_say "pip failed (above)"; return 1; }
        if [[ "$extras" == *lmms* ]]; then
            # lmms-eval 0.7.3 pins a wandb that asks for protobuf < 7, with which sentencepiece cannot be imported;
            # the tested protobuf works with both, as long as that wandb is not used. pip complains, and installs it.
            "$venv/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps \
                "$(grep '^protobuf==' "$LLAVA_PAT_ROOT/scripts/requirements.txt")" >&2 || return 1
        fi
        echo "$stamp" >"$venv/.llava_pat-stamp"
    fi
    echo "$stamp" >"$stamp_file"
}

_lp_prepare() {  # environment, extras: installs what is missing
    local venv="$1" extras="$2" stamp
    stamp="$(cat "$LLAVA_PAT_ROOT/scripts/requirements.txt" "$LLAVA_PAT_ROOT/setup.py" | cksum)"
    local stamp_file="$venv/.llava_pat-stamp${extras:+-$extras}"
    if [[ -x "$venv/bin/python" && -f "$stamp_file" && "$(<"$stamp_file")" == "$stamp" ]]; then return 0; fi
    mkdir -p "$venv" || return 1
    if ! command -v flock >/dev/null 2>&1; then  # macOS has none
        _lp_install "$venv" "$stamp" "$extras"
        return
    fi
    (
        flock -n 9 || { _lp_say "another set-up of $venv is running: waiting for it"; flock 9; }
        # 9>&-: no child may keep the lock after this call
        _lp_install "$venv" "$stamp" "$extras" 9>&-
    ) 9>"$venv/.llava_pat-lock"
}

_lp_clear_stale_locks() {
    # A run that is killed while torch compiles an extension leaves a `lock` file, and later runs wait for it for ever.
    [[ -d "$TORCH_EXTENSIONS_DIR" ]] || return 0
    # one name a call: pgrep takes an alternation for a name of more than 15 letters
    if command -v pgrep >/dev/null 2>&1 && ! { pgrep -x ninja || pgrep -x cc1plus || pgrep -x nvcc; } >/dev/null; then
        find "$TORCH_EXTENSIONS_DIR" -name lock -mmin +1 -print -delete | sed 's/^/[setup] removed a stale lock: /' >&2
    fi
}

_lp_main() {
    local extras="${LLAVA_PAT_WITH:-}" venv="" python
    while (($#)); do
        case "$1" in
            --with) extras="${2:?--with needs an extra of setup.py, for instance open-clip}"; shift 2 ;;
            -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; return 0 ;;
            *) _lp_say "unknown argument $1; see scripts/setup.sh --help"; return 1 ;;
        esac
    done
    if [[ -n "${LLAVA_PAT_VENV:-}" ]]; then
        mkdir -p "$LLAVA_PAT_VENV" && venv="$(cd "$LLAVA_PAT_VENV" && pwd)" || return 1
    elif [[ "${VIRTUAL_ENV:-}" == "$LLAVA_PAT_ROOT/.venv" ]]; then
        venv="$VIRTUAL_ENV"
    elif python="$(command -v python)" && (cd / && env -u PYTHONPATH "$python" -c 'import llava_pat') 2>/dev/null; then
        if [[ -n "$extras" ]]; then
            _lp_say "the active environment is not changed here; add the extras yourself: pip install -e '$LLAVA_PAT_ROOT[$extras]'"
            return 1
        fi
        _lp_say "the active environment has llava_pat: $python"
        PATH="$(cd / && "$python" -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$PATH"
    else
        venv="$LLAVA_PAT_ROOT/.venv"
    fi
    if [[ -n "$venv" ]]; then
        _lp_prepare "$venv" "$extras" || return 1
        _lp_say "environment: $venv"
        export VIRTUAL_ENV="$venv"
        PATH="$venv/bin:$PATH"  # ninja of this environment must be the first
    fi
    export PATH
    # This clone's code, whatever clone the environment was first made for.
    export PYTHONPATH="$LLAVA_PAT_ROOT${PYTHONPATH:+:$PYTHONPATH}"
    export TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR:-${VIRTUAL_ENV:-${XDG_CACHE_HOME:-$HOME/.cache}/llava_pat}/torch_extensions}"
    export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"  # data workers fork; tokenizers warn otherwise
    _lp_clear_stale_locks
}

# Sourced without arguments, "$@" would be the caller's.
if [[ "${BASH_SOURCE[0]}" == "$0" ]]; then _lp_main "$@"; else _lp_main; fi
