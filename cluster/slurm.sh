#!/bin/bash
# One Ray cluster over the nodes of a Slurm allocation, and one job on it. From the repository's root, on a file system
# that every node sees, after `make setup`:
#   sbatch --nodes=4 cluster/slurm.sh python jobs/preprocess.py --input /data/caer --output /data/out
# Cut off by the time limit? Submit the same line again: it does only what is missing.
#SBATCH --job-name=emotion-pipeline
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@120
set -euo pipefail

if [ "$#" -eq 0 ]; then
  echo "slurm.sh: error: no command; give one, as in: sbatch cluster/slurm.sh python jobs/preprocess.py --help" >&2
  exit 2
fi
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${hosts[0]}
port=$((20000 + SLURM_JOB_ID % 20000)) # Jobs that share a host get ports of their own.
cpus=${SLURM_CPUS_ON_NODE:-$(nproc)}
export PATH="$PWD/.venv/bin:$PATH" PYTHONPATH="$PWD" RAY_USAGE_STATS_ENABLED=0 RAY_worker_niceness=0
# Ray listens on the nodes' network: nobody joins without this job's token. It travels in the environment of the steps,
# which only this user can read, never on a command line.
export RAY_AUTH_MODE=token
if [ -z "${RAY_AUTH_TOKEN:-}${RAY_AUTH_TOKEN_PATH:-}" ]; then
  RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
  export RAY_AUTH_TOKEN
fi
own_umask=$(umask)
umask 077 # Ray's own files hold logs and sockets.

# --block ties each node's Ray to its srun step, so that none outlives the allocation.
srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap \
  ray start --head --port="$port" --num-cpus="$cpus" --dashboard-host=127.0.0.1 --block &
steps=($!)
trap 'kill "${steps[@]}" 2>/dev/null; wait' EXIT
export RAY_ADDRESS="$head:$port"
until ray health-check --address "$RAY_ADDRESS" 2>/dev/null; do
  kill -0 "${steps[0]}" || { echo "slurm.sh: error: Ray's head did not start on $head; see above" >&2; exit 1; }
  sleep 1
done
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
  srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --exclude="$head" --overlap \
    ray start --address "$RAY_ADDRESS" --num-cpus="$cpus" --block &
  steps+=($!)
fi
# The job asks once how many CPUs there are: wait for all nodes, 300 s at most.
python - "$SLURM_JOB_NUM_NODES" <<'END'
import sys, time, ray
ray.init(log_to_driver=False, logging_level="ERROR")
deadline = time.monotonic() + 300
while (alive := sum(node["Alive"] for node in ray.nodes())) < int(sys.argv[1]):
    if time.monotonic() > deadline:
        print(f"slurm.sh: warning: going on with {alive} of {sys.argv[1]} nodes", file=sys.stderr)
        break
    time.sleep(1)
END

umask "$own_umask" # What the job writes is for it to say: --shared-output.
"$@" & # In the background, so that the signal before the time limit reaches it.
job=$!
trap 'kill -TERM "$job" 2>/dev/null' TERM INT
wait "$job" && code=0 || code=$?
if kill -0 "$job" 2>/dev/null; then wait "$job" && code=0 || code=$?; fi # A signal ended the first wait.
exit "$code"
