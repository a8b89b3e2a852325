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
 "backend": "local",
 "options": {
  "processes": 2
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
# checks
{ env PYTHONSAFEPATH=1 PYTHONPATH=runs/launch/big-run/src-0123456789ab python3 -m launch.host preflight runs/launch/big-run; } | tee /dev/stderr | python3 -m launch.host agree
# starts in the background
env PYTHONSAFEPATH=1 PYTHONPATH=runs/launch/big-run/src-0123456789ab python3 -m launch.host start runs/launch/big-run

## status
env PYTHONSAFEPATH=1 PYTHONPATH=runs/launch/big-run/src-0123456789ab python3 -m launch.host status runs/launch/big-run

## logs --follow
env PYTHONSAFEPATH=1 PYTHONPATH=runs/launch/big-run/src-0123456789ab python3 -m launch.host logs runs/launch/big-run --follow

## stop
env PYTHONSAFEPATH=1 PYTHONPATH=runs/launch/big-run/src-0123456789ab python3 -m launch.host stop runs/launch/big-run

## delete
env PYTHONSAFEPATH=1 PYTHONPATH=runs/launch/big-run/src-0123456789ab python3 -m launch.host stop runs/launch/big-run

