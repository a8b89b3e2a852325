## run
mkdir -p runs/launch/big-run
# the code, as it is in the commit
git archive --format=tar.gz --output=runs/launch/big-run/src.tar.gz 0123456789abcdef0123456789abcdef01234567
# the run
printf %s '{
 "run_id": "big-run",
 "module": "experiments.language_model",
 "flags": [
  "--features=2048",
  "--workdir=/shared/big"
 ],
 "workdir": "/shared/big",
 "commit": "0123456789abcdef0123456789abcdef01234567",
 "backend": "slurm",
 "options": {
  "nodes": 2,
  "gpus_per_node": 8,
  "time": "24:00:00",
  "coordinator": "auto",
  "rerun_preempted": false
 },
 "retries": 3,
 "python": "",
 "install": "cpu",
 "devices": 0,
 "secrets": [],
 "cwd": ""
}
' > runs/launch/big-run/job.json
mkdir -p runs/launch/big-run/src-0123456789ab
tar -xzf runs/launch/big-run/src.tar.gz -C runs/launch/big-run/src-0123456789ab
# makes the environment
env PYTHONSAFEPATH=1 PYTHONPATH=runs/launch/big-run/src-0123456789ab python3 -m launch.host setup runs/launch/big-run
printf %s '#!/bin/bash
# Runs on the first node of the job. Exit code 75 means that the run was told to
# stop and has saved its state: then the job is queued again.
set -u -o pipefail
cd runs/launch/big-run || exit 1
export PYTHONPATH="$PWD/src-0123456789ab"
srun python3 -m launch.host preflight . | tee /dev/stderr |
  python3 -m launch.host agree || exit 1
srun --wait=600 python3 -m launch.host supervise .
code=$?
if [ "$code" -eq 75 ] && [ ! -e stop ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
' > runs/launch/big-run/job.sh
rm -f runs/launch/big-run/stop
# submits the job
sbatch --parsable --job-name=big-run --nodes=2 --ntasks-per-node=1 --gpus-per-node=8 --time=24:00:00 --requeue --signal=TERM@120 --open-mode=append --output=runs/launch/big-run/log.txt runs/launch/big-run/job.sh

## status
squeue --me --name=big-run
sacct -X --name=big-run --format=JobID,State,ExitCode,Elapsed,NodeList

## logs --follow
tail -n 200 -F runs/launch/big-run/log.txt

## stop
touch runs/launch/big-run/stop
scancel --signal=TERM --me --name=big-run

## delete
scancel --me --name=big-run

