## run
# asks for the TPUs; from when they are active, they are billed
gcloud compute tpus queued-resources create big-run --zone=us-west4-a --node-id=big-run --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot
# waits for them
until test "$(gcloud compute tpus queued-resources describe big-run --zone=us-west4-a '--format=value(state.state)')" = ACTIVE; do sleep 30; done
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
 "backend": "tpu_vm",
 "options": {
  "zone": "us-west4-a",
  "accelerator": "v5litepod-16",
  "spot": true,
  "runtime_version": "v2-alpha-tpuv5-lite",
  "coordinator": "auto"
 },
 "retries": 3,
 "python": "",
 "install": "cpu",
 "devices": 0,
 "secrets": [],
 "cwd": ""
}
' > runs/launch/big-run/job.json
# copies the code
gcloud compute tpus tpu-vm ssh big-run --zone=us-west4-a --worker=all --quiet '--command=mkdir -p recurrent-launch/big-run/src-0123456789ab'
gcloud compute tpus tpu-vm scp runs/launch/big-run/src.tar.gz runs/launch/big-run/job.json big-run:recurrent-launch/big-run/ --zone=us-west4-a --worker=all --quiet
gcloud compute tpus tpu-vm ssh big-run --zone=us-west4-a --worker=all --quiet '--command=tar -xzf recurrent-launch/big-run/src.tar.gz -C recurrent-launch/big-run/src-0123456789ab'
# sets up all workers
gcloud compute tpus tpu-vm ssh big-run --zone=us-west4-a --worker=all --quiet '--command=PYTHONPATH=recurrent-launch/big-run/src-0123456789ab python3 -m launch.host setup recurrent-launch/big-run'
# checks them
{ gcloud compute tpus tpu-vm ssh big-run --zone=us-west4-a --worker=all --quiet '--command=PYTHONPATH=recurrent-launch/big-run/src-0123456789ab python3 -m launch.host preflight recurrent-launch/big-run'; } | tee /dev/stderr | python3 -m launch.host agree
# starts in the background
gcloud compute tpus tpu-vm ssh big-run --zone=us-west4-a --worker=all --quiet '--command=PYTHONPATH=recurrent-launch/big-run/src-0123456789ab python3 -m launch.host start recurrent-launch/big-run'

## status
gcloud compute tpus tpu-vm ssh big-run --zone=us-west4-a --worker=all --quiet '--command=PYTHONPATH=recurrent-launch/big-run/src-0123456789ab python3 -m launch.host status recurrent-launch/big-run'

## logs --follow
gcloud compute tpus tpu-vm ssh big-run --zone=us-west4-a --worker=0 --quiet '--command=PYTHONPATH=recurrent-launch/big-run/src-0123456789ab python3 -m launch.host logs recurrent-launch/big-run --follow'

## stop
gcloud compute tpus tpu-vm ssh big-run --zone=us-west4-a --worker=all --quiet '--command=PYTHONPATH=recurrent-launch/big-run/src-0123456789ab python3 -m launch.host stop recurrent-launch/big-run'

## delete
# deletes the TPUs and what is stored on them
gcloud compute tpus queued-resources delete big-run --zone=us-west4-a --force --quiet

