#!/usr/bin/env bash
# Sourced by the training scripts, after setup.sh. `launch SCRIPT [flags...]` runs on as many processes as there are;
# `launch_config SCRIPT NAME SUFFIX [CONFIG] [flags...]` does so with scripts/configs/CONFIG<SUFFIX>.yaml (or the YAML
# file CONFIG; by default NAME), and makes the playground's data first where a playground config needs them.
#
#     HOSTFILE=FILE   several nodes, by the deepspeed launcher (its hostfile format: `node1 slots=8`)
#     NNODES=N NODE_RANK=I MASTER_ADDR=HOST   several nodes, by torchrun started on each of them
#     NUM_GPUS=N      N processes on this machine (on a machine without a GPU: N CPU processes)
#     otherwise       one process per visible GPU; on a CPU plain python
#     MASTER_PORT     port of torchrun and deepspeed (default 29500), for two runs on one machine

visible_gpus() { python -c 'import torch; print(torch.cuda.device_count())'; }

launch() {
    local count port="${MASTER_PORT:-29500}"
    if [[ -n "${HOSTFILE:-}" ]]; then
        [[ -f "$HOSTFILE" ]] || { echo "HOSTFILE=$HOSTFILE: no such file" >&2; return 1; }
        echo "[launch] deepspeed on the nodes of $HOSTFILE: $*" >&2
        become deepspeed --hostfile "$HOSTFILE" --master_port "$port" "$@"
        return
    fi
    count="${NUM_GPUS:-$(visible_gpus)}"
    if [[ -n "${NNODES:-}" ]]; then
        echo "[launch] node ${NODE_RANK:?set NODE_RANK} of $NNODES, $count processes, by torchrun: $*" >&2
        become torchrun --nnodes "$NNODES" --node_rank "$NODE_RANK" --nproc_per_node "$count" \
            --master_addr "${MASTER_ADDR:?set MASTER_ADDR}" --master_port "$port" "$@"
    elif ((count == 0)) || { ((count == 1)) && (($(visible_gpus) == 0)); }; then
        echo "[launch] one process on the CPU: $*" >&2
        become python "$@"
    else
        echo "[launch] $count processes by torchrun: $*" >&2
        become torchrun --nproc_per_node "$count" --master_port "$port" "$@"
    fi
}

become() {  # COMMAND: in the place of this shell, so that a scheduler's SIGTERM to the script reaches what trains
    if [[ "$(type -t "$1")" == file ]]; then
        exec "$@"
    fi
    "$@"  # a shell function in its place
}

config_file() {  # NAME SUFFIX: the YAML that they name, as seen from the repository
    local name="$1" suffix="$2" config
    if [[ -f "$name" ]]; then
        echo "$(cd "$(dirname "$name")" && pwd)/$(basename "$name")"
        return
    fi
    name="${name%.yaml}"
    config="scripts/configs/${name%"$suffix"}$suffix.yaml"
    if [[ ! -f "$LLAVA_PAT_ROOT/$config" ]]; then
        echo "$config: no such file; there are: $(cd "$LLAVA_PAT_ROOT/scripts/configs" && echo *"$suffix".yaml)" >&2
        return 1
    fi
    echo "$config"
}

make_playground_for() {  # CONFIG: from the repository
    if [[ "$(basename "$1")" == playground* ]]; then
        python -m playground.generate --if_absent  # the small world is generated, not tracked: about a minute, once
    fi
}

launch_config() {
    local script="$1" name="$2" suffix="$3" config
    shift 3
    if (($#)) && [[ "$1" != -* ]]; then
        name="$1"
        shift
    fi
    config="$(config_file "$name" "$suffix")" || return 1
    cd "$LLAVA_PAT_ROOT"
    make_playground_for "$config"
    launch "$script" --config "$config" "$@"
}
