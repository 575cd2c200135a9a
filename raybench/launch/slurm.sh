#!/usr/bin/env bash
# A suite on a Ray that lives as long as this Slurm allocation: the words are those of `raybench run`.
#
#   sbatch slurm.sh quickstart -o /shared/results
#
# The store must be a folder that all nodes share, or a URL. When the time is up, what has finished is
# kept, and the same sbatch goes on with the rest.
#SBATCH --job-name=raybench
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --no-kill
#SBATCH --requeue
set -euo pipefail

# module load python cuda          # whatever your site needs
# source ~/raybench/.venv/bin/activate

# A token that only this job knows: other users of the nodes cannot join or send work.
RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # the suite has ended when the nodes are told to

# Ports and folder of its own, for nodes that are shared with another job like this one.
port=$((20000 + SLURM_JOB_ID % 10000 * 3))
folder=/tmp/ray-$SLURM_JOB_ID
start=(ray start --block --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}"
  --min-worker-port=0 --max-worker-port=0)

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
ip=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address)
ip=${ip%% *}

run=
trap 'if [ -n "$run" ]; then kill -TERM "$run"; else exit 143; fi' TERM
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$folder"' EXIT

srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap "${start[@]}" --head \
  --node-ip-address="$ip" --port="$port" --temp-dir="$folder" \
  --dashboard-host=127.0.0.1 --dashboard-port="$((port + 1))" --ray-client-server-port="$((port + 2))" &
others=$((${#nodes[@]} - 1))
if [ "$others" -gt 0 ]; then
  until (exec 3<>"/dev/tcp/$ip/$port") 2>/dev/null; do sleep 1; done
  srun --nodes="$others" --ntasks="$others" --exclude="$head" --overlap --kill-on-bad-exit=0 \
    "${start[@]}" --address="$ip:$port" &
fi

# The batches are sized by what the cluster has when the suite begins.
python - "$ip:$port" "${#nodes[@]}" <<'WAIT'
import sys, time
import ray

address, wanted = sys.argv[1], int(sys.argv[2])
end, found = time.monotonic() + 300, "none"
while True:
    try:
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        found = sum(node["Alive"] for node in ray.nodes())
        if found >= wanted:
            break
    except (ConnectionError, RuntimeError) as error:
        found = error
    if time.monotonic() > end:
        sys.exit(f"{wanted} nodes should have joined the Ray at {address} in 300 s: {found}")
    time.sleep(1)
WAIT

raybench run "$@" --address "$ip:$port" &
run=$!
while true; do  # the trap of TERM ends a wait before the suite has ended
  wait "$run" && code=0 || code=$?
  kill -0 "$run" 2>/dev/null || break
done
exit "$code"
