#!/usr/bin/env bash
# Encode, distil, export, evaluate: jobs that wait for each other. Prints their numbers.
#
#   slurm/pipeline.sh RUN_DIR CONFIG [key=value ...]
#
# Each needs the one before it to succeed; a requeued one is waited for. The export goes to RUN_DIR/export, the evaluation to RUN_DIR/evaluation. Set in the environment:
#   STEPS           what to do, default "distill export evaluate"; put encode first if you need it, and for a
#                   velocity model, whose configuration is another, "pretrain export"
#   ENCODE          arguments of `python -m data encode`
#   EVALUATE        more arguments of `fmtt evaluate`, such as "--teacher DIR"
#   SBATCH_ALL      sbatch options of every job, such as "--partition=gpu --account=me"
#   SBATCH_ENCODE, SBATCH_TRAIN, SBATCH_EXPORT, SBATCH_EVALUATE
#                   those of one, such as SBATCH_TRAIN="--nodes=4 --ntasks-per-node=8 --gpus-per-node=8"
set -euo pipefail

[ $# -ge 2 ] || {
    echo "usage: slurm/pipeline.sh RUN_DIR CONFIG [key=value ...]" >&2
    exit 2
}
run_dir=$1
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.." # relative paths are from the root of the checkout
after=""

submit() { # submit STEP OPTIONS SCRIPT ARGUMENTS...: after the step before it
    local step=$1 options=$2
    shift 2
    # shellcheck disable=SC2086  # options are several words
    after=$(sbatch --parsable ${after:+--dependency=afterok:$after --kill-on-invalid-dep=yes} \
        ${SBATCH_ALL:-} $options "$@")
    after=${after%%;*}
    echo "$step $after"
}

for step in ${STEPS:-distill export evaluate}; do
    # shellcheck disable=SC2086
    case $step in
        encode) submit "$step" "${SBATCH_ENCODE:-}" slurm/encode.sbatch ${ENCODE:?arguments of python -m data encode} ;;
        pretrain | distill) submit "$step" "${SBATCH_TRAIN:-}" "slurm/$step.sbatch" "$@" "run_dir=$run_dir" ;;
        export) submit "$step" "${SBATCH_EXPORT:-}" slurm/export.sbatch "$run_dir" "$run_dir/export" ;;
        evaluate) submit "$step" "${SBATCH_EVALUATE:-}" slurm/evaluate.sbatch "$run_dir/export" --out "$run_dir/evaluation" ${EVALUATE:-} ;;
        *)
            echo "STEPS: $step is not one of encode, pretrain, distill, export, evaluate" >&2
            exit 2
            ;;
    esac
done
