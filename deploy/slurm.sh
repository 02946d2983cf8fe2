#!/usr/bin/env bash
# A search on SLURM: a Ray cluster in one allocation, the last node as speed node, the study on it.
#
#   sbatch --nodes=3 --gpus-per-node=4 deploy/slurm.sh STUDY.yaml [ARGUMENTS OF headway run]
#
#   HEADWAY_HOME     the checkout with its .venv, on storage that all nodes share (default: where sbatch was called)
#   HEADWAY_STUDIES  folder of all studies, shared likewise (default: $HEADWAY_HOME/studies)
#   HEADWAY_SPEED    0: no speed node, latency is measured beside trials (default: 1 where there are two nodes or more)
#
# The same command continues the study, so the job may be requeued at any time: by SLURM, after a node failed, or by
# itself when its time is up (the signal below comes five minutes before).
#SBATCH --job-name=headway
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=headway-%j.log
#SBATCH --signal=B:USR1@300
set -euo pipefail

[ $# -ge 1 ] || { echo "usage: sbatch deploy/slurm.sh STUDY.yaml [ARGUMENTS OF headway run]" >&2; exit 2; }
home=${HEADWAY_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}
export HEADWAY_STUDIES=${HEADWAY_STUDIES:-$home/studies}
# shellcheck source=/dev/null
source "$home/.venv/bin/activate"

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
count=${#nodes[@]}
head=${nodes[0]}
# Two jobs may share a head's machine after a requeue.
port=$((20000 + SLURM_JOB_ID % 10000))
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}'):$port

# A token of this job's own, readable by its owner alone; without it anybody in the network could run code here.
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0

steps=()
driver=
# shellcheck disable=SC2329  # called by the traps
stop() {
  trap - EXIT
  if [ -n "$driver" ]; then kill "$driver" 2>/dev/null || true; wait "$driver" 2>/dev/null || true; fi
  if [ "${#steps[@]}" -gt 0 ]; then kill "${steps[@]}" 2>/dev/null || true; wait "${steps[@]}" 2>/dev/null || true; fi
}
# shellcheck disable=SC2329
again() {
  echo "headway: the allocation ends; the study is continued in a new one"
  stop
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}
trap stop EXIT
trap again USR1
trap 'stop; exit 143' TERM

start() {
  local node=$1
  shift
  srun --nodes=1 --ntasks=1 --nodelist="$node" --overlap ray start --block \
    --num-cpus="${SLURM_CPUS_ON_NODE:-1}" --temp-dir="${TMPDIR:-/tmp}/ray-$SLURM_JOB_ID" "$@" &
  steps+=($!)
}

start "$head" --head --port="$port" --dashboard-host=127.0.0.1
deadline=$((SECONDS + 180))
until ray health-check --address "$address" 2>/dev/null; do
  [ "$SECONDS" -lt "$deadline" ] || { echo "headway: the head on $head did not start" >&2; exit 1; }
  sleep 3
done
for ((i = 1; i < count; i++)); do
  if [ "$i" -eq $((count - 1)) ] && [ "${HEADWAY_SPEED:-1}" != 0 ]; then
    start "${nodes[i]}" --address="$address" --resources='{"speed": 1}'
  else
    start "${nodes[i]}" --address="$address"
  fi
done
# A study is checked on the nodes that are there when it starts.
deadline=$((SECONDS + 180))
joined() {
  python -c 'import ray, sys
ray.init(sys.argv[1], logging_level="ERROR", log_to_driver=False)
print(sum(node["Alive"] for node in ray.nodes()))' "$address"
}
until [ "$(joined)" -ge "$count" ]; do
  [ "$SECONDS" -lt "$deadline" ] || { echo "headway: not all $count nodes joined; going on with those that did"; break; }
  sleep 3
done

# In the background, so that a signal is heard at once.
headway run "$1" --address "$address" "${@:2}" &
driver=$!
status=0
wait "$driver" || status=$?
driver=
exit "$status"
