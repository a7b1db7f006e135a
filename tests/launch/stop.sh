#!/usr/bin/env bash
# End the Slurm that start.sh started in DIR, with all its jobs: tests/launch/stop.sh DIR
set -uo pipefail
export SLURM_CONF=$1/slurm.conf
scancel --user "$(id -un)" 2>/dev/null
for _ in {1..25}; do # until their processes are gone
  if [ -z "$(squeue --noheader 2>/dev/null)" ]; then break; fi
  sleep 0.2
done
for daemon in slurmd.n1 slurmd.n2 slurmctld munged; do
  if [ -s "$1/$daemon.pid" ]; then kill "$(cat "$1/$daemon.pid")" 2>/dev/null; fi
done
exit 0
