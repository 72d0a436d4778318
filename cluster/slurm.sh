#!/usr/bin/env bash
#SBATCH --job-name=cfer
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --output=cfer-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# A Ray cluster for the time of one command: cluster/README.md.
#   sbatch --nodes=4 cluster/slurm.sh python pipeline/extract.py --videos DIR --out DIR
# It ends with the command's exit status, and Ray with it.
set -euo pipefail

if (($# == 0)); then
    echo "usage: sbatch cluster/slurm.sh COMMAND..." >&2
    exit 2
fi

# Processes of others on these nodes reach Ray's ports as well, and don't have its token.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN

# A port and a folder of the job's own, for jobs that meet on a node.
port=$((20000 + SLURM_JOB_ID % 10000))
client_port=$((port + 10000))
export RAY_TMPDIR=/tmp/cfer-$SLURM_JOB_ID
# Steps don't take it from the job by themselves.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
others=$((SLURM_JOB_NUM_NODES - 1))
export RAY_ADDRESS=$head:$port

end_ray() {
    jobs -p | xargs --no-run-if-empty kill
    wait
    srun --overlap --ntasks-per-node=1 rm -rf "$RAY_TMPDIR"
}
trap end_ray EXIT

srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
    ray start --head --block --port="$port" --ray-client-server-port="$client_port" \
    --num-cpus="$SLURM_CPUS_PER_TASK" --disable-usage-stats > /dev/null &
until ray health-check --address="$RAY_ADDRESS" > /dev/null 2>&1; do
    kill -0 $!  # an error where Ray's head ended
    sleep 1
done
if ((others > 0)); then
    srun --overlap --nodes="$others" --ntasks="$others" --exclude="$head" \
        ray start --block --address="$RAY_ADDRESS" \
        --num-cpus="$SLURM_CPUS_PER_TASK" --disable-usage-stats > /dev/null &
fi
python - "$SLURM_JOB_NUM_NODES" << 'END'
import sys, time
import ray

ray.init(logging_level="ERROR", log_to_driver=False)
deadline = time.monotonic() + 300
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[1]):
    if time.monotonic() > deadline:
        sys.exit(f"Ray has {len(ray.nodes())} of {sys.argv[1]} nodes after 5 minutes")
    time.sleep(1)
END

"$@"
