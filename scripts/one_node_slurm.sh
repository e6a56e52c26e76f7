#!/usr/bin/env bash
# A SLURM of one node on this machine, from Debian's packages, to try --engine slurm on. Needs root.
#   apt-get install slurm-wlm munge
#   scripts/one_node_slurm.sh start FOLDER && export SLURM_CONF=FOLDER/slurm.conf
#   scripts/one_node_slurm.sh stop FOLDER
# SLURM_PORT: the first of the two ports that it listens on, where 6817 and 6818 are taken.
set -euo pipefail
what=${1:?start or stop}
folder=$(realpath -m "${2:?a folder for its files}")
conf=$folder/slurm.conf
port=${SLURM_PORT:-6817}
export SLURM_CONF=$conf

if [ "$what" = stop ]; then
  for name in slurmd slurmctld munged; do
    [ -s "$folder/$name.pid" ] && kill "$(cat "$folder/$name.pid")" || true
  done
  exit 0
fi

mkdir -p "$folder/state" "$folder/spool"
host=$(hostname -s)
cat > "$conf" <<CONF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ReturnToService=2
JobRequeue=1
KillWait=5
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(getconf _NPROCESSORS_ONLN) RealMemory=2000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
CONF
if [ ! -s "$folder/munge.key" ]; then
  head -c 1024 /dev/urandom > "$folder/munge.key"
  chmod 400 "$folder/munge.key"
fi
munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
  --log-file="$folder/munged.log" --seed-file="$folder/munged.seed"
slurmctld -f "$conf"
slurmd -f "$conf"
for _ in $(seq 60); do
  sinfo --noheader --format=%T 2>/dev/null | grep -q idle && break
  sleep 1
done
sinfo
