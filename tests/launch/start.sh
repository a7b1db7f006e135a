#!/usr/bin/env bash
# Start a Slurm of two nodes on this machine, with a munged of its own, in an empty folder:
#   tests/launch/start.sh DIR PORT PORT PORT && SLURM_CONF=DIR/slurm.conf sinfo
# It needs Debian's slurm-wlm and munge, not root. DIR is short: it holds sockets. tests/launch/stop.sh
# DIR ends it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=$(cd "$1" && pwd) ports=("${@:2}")
PATH=$PATH:/usr/sbin:/sbin
chmod 755 "$dir" # munged wants its socket to be within everyone's reach

sed -e "s|@DIR@|$dir|g; s|@HOST@|$(hostname -s)|g; s|@USER@|$(id -un)|g" \
  -e "s|@PORT0@|${ports[0]}|; s|@PORT1@|${ports[1]}|; s|@PORT2@|${ports[2]}|; s|@JOB@|${ports[0]}|" \
  "$here/slurm.conf" >"$dir/slurm.conf"
export SLURM_CONF=$dir/slurm.conf
mkdir -p "$dir"/{state,spool.n1,spool.n2}

(umask 077 && head -c 128 /dev/urandom >"$dir/munge.key")
munged --force --socket="$dir/munge.socket" --key-file="$dir/munge.key" --seed-file="$dir/munge.seed" \
  --pid-file="$dir/munged.pid" --log-file="$dir/munged.log" --num-threads=2 2>>"$dir/start.log"
slurmctld 2>>"$dir/start.log"
for node in n1 n2; do slurmd -N "$node" 2>>"$dir/start.log"; done

for _ in {1..100}; do
  if [ "$(sinfo --noheader --Node --partition low --states idle --format %N 2>/dev/null | wc -l)" = 2 ]; then exit 0; fi
  sleep 0.2
done
echo "tests/launch/start.sh: the nodes did not come up:" >&2
tail -n 20 "$dir"/*.log >&2
exit 1
