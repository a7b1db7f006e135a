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
  pid=$(cat "$1/$daemon.pid" 2>/dev/null) || continue
  kill "$pid" 2>/dev/null
  for _ in {1..50}; do # until it is gone: it writes its state last, into a folder about to be removed
    state=$(sed 's/.*) //' "/proc/$pid/stat" 2>/dev/null) || break
    if [ "${state:0:1}" = Z ]; then break; fi # nobody may be there to bury it
    sleep 0.1
  done
done
exit 0
