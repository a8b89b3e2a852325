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
 "backend": "xpk",
 "options": {
  "cluster": "cluster",
  "image": "gcr.io/project/image:1",
  "accelerator": "v5litepod-16",
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
mkdir -p runs/launch/big-run/image
tar -xzf runs/launch/big-run/src.tar.gz -C runs/launch/big-run/image
printf %s '{
 "run_id": "big-run",
 "module": "experiments.language_model",
 "flags": [
  "--features=2048",
  "--workdir=/shared/big"
 ],
 "workdir": "/shared/big",
 "commit": "0123456789abcdef0123456789abcdef01234567",
 "backend": "xpk",
 "options": {
  "cluster": "cluster",
  "image": "gcr.io/project/image:1",
  "accelerator": "v5litepod-16",
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
' > runs/launch/big-run/image/job.json
# xpk reports its use unless it is told not to
xpk config set send-telemetry false
# creates the workload
xpk workload create --workload=big-run --cluster=cluster --tpu-type=v5litepod-16 --num-slices=1 --base-docker-image=gcr.io/project/image:1 --script-dir=runs/launch/big-run/image --max-restarts=50 --restart-on-exit-codes=75 --termination-grace-period-seconds=120 '--command=python3 -m launch.host preflight . && exec python3 -m launch.host supervise .'

## status
xpk workload list --filter-by-job=big-run --cluster=cluster --filter-by-status=EVERYTHING

## logs --follow
kubectl logs --prefix --all-containers --tail=200 --follow --max-log-requests=1000 --selector=jobset.sigs.k8s.io/jobset-name=big-run

## stop
# the pods are told to save, and end 120 s later
xpk workload delete --workload=big-run --cluster=cluster --force

## delete
# the pods are told to save, and end 120 s later
xpk workload delete --workload=big-run --cluster=cluster --force

