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
 "backend": "ssh",
 "options": {
  "hosts": [
   "gpu0",
   "me@gpu1"
  ],
  "coordinator": "gpu0:8476"
 },
 "retries": 3,
 "python": "",
 "install": "cpu",
 "devices": 0,
 "secrets": [],
 "cwd": ""
}
' > runs/launch/big-run/job.json
# sets up gpu0
ssh -o BatchMode=yes -- gpu0 'mkdir -p recurrent-launch/big-run/src-0123456789ab'
scp -q -o BatchMode=yes -- runs/launch/big-run/src.tar.gz runs/launch/big-run/job.json gpu0:recurrent-launch/big-run/
ssh -o BatchMode=yes -- gpu0 'tar -xzf recurrent-launch/big-run/src.tar.gz -C recurrent-launch/big-run/src-0123456789ab'
ssh -o BatchMode=yes -- gpu0 'PYTHONPATH=recurrent-launch/big-run/src-0123456789ab python3 -m launch.host setup recurrent-launch/big-run'
# sets up me@gpu1
ssh -o BatchMode=yes -- me@gpu1 'mkdir -p recurrent-launch/big-run/src-0123456789ab'
scp -q -o BatchMode=yes -- runs/launch/big-run/src.tar.gz runs/launch/big-run/job.json me@gpu1:recurrent-launch/big-run/
ssh -o BatchMode=yes -- me@gpu1 'tar -xzf recurrent-launch/big-run/src.tar.gz -C recurrent-launch/big-run/src-0123456789ab'
ssh -o BatchMode=yes -- me@gpu1 'PYTHONPATH=recurrent-launch/big-run/src-0123456789ab python3 -m launch.host setup recurrent-launch/big-run'
# checks gpu0
{ ssh -o BatchMode=yes -- gpu0 'PYTHONPATH=recurrent-launch/big-run/src-0123456789ab python3 -m launch.host preflight recurrent-launch/big-run' && ssh -o BatchMode=yes -- me@gpu1 'PYTHONPATH=recurrent-launch/big-run/src-0123456789ab python3 -m launch.host preflight recurrent-launch/big-run'; } | tee /dev/stderr | python3 -m launch.host agree
# starts in the background
ssh -o BatchMode=yes -- gpu0 'PYTHONPATH=recurrent-launch/big-run/src-0123456789ab python3 -m launch.host start recurrent-launch/big-run --process=0'
# starts in the background
ssh -o BatchMode=yes -- me@gpu1 'PYTHONPATH=recurrent-launch/big-run/src-0123456789ab python3 -m launch.host start recurrent-launch/big-run --process=1'

## status
ssh -o BatchMode=yes -- gpu0 'PYTHONPATH=recurrent-launch/big-run/src-0123456789ab python3 -m launch.host status recurrent-launch/big-run'
ssh -o BatchMode=yes -- me@gpu1 'PYTHONPATH=recurrent-launch/big-run/src-0123456789ab python3 -m launch.host status recurrent-launch/big-run'

## logs --follow
ssh -o BatchMode=yes -- gpu0 'PYTHONPATH=recurrent-launch/big-run/src-0123456789ab python3 -m launch.host logs recurrent-launch/big-run --follow'

## stop
ssh -o BatchMode=yes -- gpu0 'PYTHONPATH=recurrent-launch/big-run/src-0123456789ab python3 -m launch.host stop recurrent-launch/big-run'
ssh -o BatchMode=yes -- me@gpu1 'PYTHONPATH=recurrent-launch/big-run/src-0123456789ab python3 -m launch.host stop recurrent-launch/big-run'

## delete
ssh -o BatchMode=yes -- gpu0 'PYTHONPATH=recurrent-launch/big-run/src-0123456789ab python3 -m launch.host stop recurrent-launch/big-run'
ssh -o BatchMode=yes -- me@gpu1 'PYTHONPATH=recurrent-launch/big-run/src-0123456789ab python3 -m launch.host stop recurrent-launch/big-run'

