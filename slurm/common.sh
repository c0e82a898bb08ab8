# What every job script shares; sourced from the checkout's root. README.md beside it says what can be set.
set -uo pipefail

complain() { # complain STATUS TEXT: one line, and the job ends
    printf '%s: %s\n' "${SLURM_JOB_NAME:-slurm}" "$2" >&2
    exit "$1"
}

if [ -f slurm/cluster.env ]; then
    . slurm/cluster.env || complain 2 "slurm/cluster.env cannot be read"
fi
if [ -n "${FMTT_MODULES:-}" ]; then
    # shellcheck disable=SC2086  # several modules, separated by spaces
    module load $FMTT_MODULES || complain 2 "FMTT_MODULES: cannot load $FMTT_MODULES"
fi
if [ -z "${FMTT_PYTHON:-}" ]; then
    if [ -x .venv/bin/python ]; then FMTT_PYTHON=$PWD/.venv/bin/python; else FMTT_PYTHON=python3; fi
fi

# Where the processes meet: the first node, under the address that SLURM itself reaches it by, and a port of
# this job's own, below those that systems hand out.
head=$(scontrol show hostnames "${SLURM_JOB_NODELIST:-localhost}" | head -n 1)
address=$(scontrol show node -o "$head" 2>/dev/null | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2)
export MASTER_ADDR=${FMTT_MASTER_ADDR:-${address:-$head}}
export MASTER_PORT=${FMTT_MASTER_PORT:-$((10000 + ${SLURM_JOB_ID:-0} % 20000))}
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
if [ -n "${FMTT_INTERFACE:-}" ]; then
    export NCCL_SOCKET_IFNAME=$FMTT_INTERFACE GLOO_SOCKET_IFNAME=$FMTT_INTERFACE
fi
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
    export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
fi

job=${SLURM_JOB_ID:-}
if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; fi

launch() { # launch COMMAND...: run it in every task, pass signals on, requeue what a signal ended; its status
    local status told=""
    # shellcheck disable=SC2086  # both hold several words
    srun --kill-on-bad-exit=1 ${FMTT_SRUN_ARGS:-} ${FMTT_CONTAINER:-} "$@" &
    step=$!
    trap 'told=yes; kill -s USR1 "$step" 2>/dev/null' USR1
    trap 'told=yes; kill -s TERM "$step" 2>/dev/null' TERM
    while kill -0 "$step" 2>/dev/null; do wait "$step"; done # a signal that arrives interrupts wait
    wait "$step"
    status=$?
    # Training requeues its job by itself, unless the signal (USR1: 138, TERM: 143) came before it listened, or
    # scontrol is out of its reach. srun too sends TERM, when one task fails: that is no reason to try again.
    if [ $status = 138 ] || { [ $status = 143 ] && [ -n "$told" ]; }; then
        # A job that SLURM is ending, or that is requeued already, is not in the state RUNNING.
        if scontrol show job -o "$job" | grep -q 'JobState=RUNNING'; then
            printf '%s: interrupted; requeueing job %s\n' "${SLURM_JOB_NAME:-}" "$job"
            scontrol requeue "$job" || printf '%s: submit the same command again\n' "${SLURM_JOB_NAME:-}" >&2
        fi
    fi
    return $status
}

train() { # train pretrain|distill CONFIG key=value...: one process for each task of the job
    launch "$FMTT_PYTHON" -m train "$@" \
        "trainer.devices=${SLURM_NTASKS_PER_NODE:-1}" "trainer.num_nodes=${SLURM_JOB_NUM_NODES:-1}"
}
