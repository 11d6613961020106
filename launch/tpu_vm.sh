#!/usr/bin/env bash
# ScaleToT on a Cloud TPU VM: check, create, setup, run, status, delete. --help says how.
set -euo pipefail
export LC_ALL=C # [a-z] means exactly these 26 letters

usage() {
  cat <<'TEXT'
launch/tpu_vm.sh SUBCOMMAND --name NAME --zone ZONE [options]

  check    would the run refuse this recipe on the slice, and by the TPU compiler's word, does it fit?   needs --type, --config
  create   check, then ask for a TPU VM through a queued resource   needs --type, --config; --spot, --valid-until, --no-check
  setup    copy the committed code to every worker and install it there; safe to repeat   --share
  run      copy the code, then start the run on every worker, detached   needs --bucket, --config
  status   state of the queued resource, and of the run on every worker
  delete   delete the TPU VM and its queued resource (asks first; --yes does not)

options
  --name NAME          of the TPU VM and its queued resource, e.g. scaletot-1
  --zone ZONE          e.g. us-west4-a
  --project PROJECT    default: the project gcloud is set to
  --type TYPE          v5litepod-16 (or v5e-16), v5p-8, v6e-8, v4-8, ...
  --runtime VERSION    TPU software version; default: the one that belongs to the type
  --spot               cheaper, may be taken away at any time
  --valid-until TIME   give up waiting after this long, e.g. 6h (create)
  --no-check           create without the check, and without a recipe
  --local-table FILE, --local-schema FILE, --local-weights DIR   what data.path, data.schema and lm.weights are on this
                       machine, for the check, where the recipe or the overrides name what lies on the workers' disk
  --share HOST:/PATH   an NFS share such as Filestore's, mounted on every worker at /mnt/filestore (setup)
  --bucket URL         gs://bucket/folder that keeps this run's workdir and logs (run)
  --config FILE        a recipe inside the repository, e.g. configs/complete_journey.py
  --workdir DIR        where the run directory lies on the workers; a slice of several hosts needs one on a disk that all
                       of them mount, such as Filestore (run)
  --yes                delete without asking
  --dry-run            print the exact commands and run nothing; needs no gcloud
  -- --config.key=value ...   overrides for the recipe (check, create, run)

example, a v5e-16:
  launch/tpu_vm.sh create --name scaletot-1 --zone us-west4-a --type v5e-16 --spot --config configs/complete_journey.py \
    -- --config.mesh.fsdp=16 --config.sft.batch_size=16 --config.osipo.prompts=16
  launch/tpu_vm.sh setup  --name scaletot-1 --zone us-west4-a --share 10.0.0.2:/vol1
  launch/tpu_vm.sh run    --name scaletot-1 --zone us-west4-a --bucket gs://my-bucket/runs/first --config configs/complete_journey.py \
    --workdir /mnt/filestore/scaletot-1 -- --config.mesh.fsdp=16 --config.sft.batch_size=16 --config.osipo.prompts=16
  launch/tpu_vm.sh status --name scaletot-1 --zone us-west4-a
  launch/tpu_vm.sh delete --name scaletot-1 --zone us-west4-a

`run` fetches the workdir from the bucket where there is none, so a run that lost its VM goes on from what was sent last;
worker 0 sends it after every stage, and every 15 minutes within one. Each worker's log goes to the folder logs/ of the
bucket. On several hosts every worker runs the same program and all see one workdir: SFT and OSIPO use the chips of the
mesh, which is to take them all (--config.mesh.fsdp=16 divides the model among 16, --config.mesh.data=0 gives each a copy),
the other stages run on worker 0 while the others wait.

exit codes: 0 done; 2 a wrong argument, or the run would refuse the recipe; 5 the recipe does not fit, or gcloud, git or
scaletot is missing (nothing was created); another of scaletot's where the check finds something else; else gcloud's own.
TEXT
}

# shellcheck source=launch/arguments.sh
source "$(dirname "${BASH_SOURCE[0]}")/arguments.sh"

# -- arguments ----------------------------------------------------------------------------------------------------------

name='' runtime='' spot='' valid_until='' bucket='' workdir='' share='' yes=''

subcommand=${1:-}
case $subcommand in
  check | create | setup | run | status | delete) shift ;;
  -h | --help | help) usage && exit 0 ;;
  '') usage >&2 && exit 2 ;;
  *) refuse "unknown subcommand $(quote "$subcommand")" 'it is one of check, create, setup, run, status, delete' ;;
esac

take_options 'name zone project type runtime valid-until bucket config workdir share local-table local-schema local-weights' \
  'spot yes no-check' "$@"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

check --name "$name" '[a-z]([-a-z0-9]{0,61}[a-z0-9])?' scaletot-1
check_place
check_local
# What is given is checked, whether this subcommand uses it or not: a wrong name is found before a VM is paid for.
needed=" $(case $subcommand in check | create) echo type ;; run) echo bucket config ;; esac) "
if [[ $subcommand == check || ($subcommand == create && -z "$no_check") ]]; then needed+='config '; fi
wanted() { [[ -n "${!1}" || $needed == *" $1 "* ]]; }
if wanted type; then
  check_slice
  case $type in
    v5litepod-*) default_runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) default_runtime=v2-alpha-tpuv5 ;;
    v6e-*) default_runtime=v2-alpha-tpuv6e ;;
    *) default_runtime=tpu-ubuntu2204-base ;;
  esac
  runtime=${runtime:-$default_runtime}
fi
if wanted runtime; then check --runtime "$runtime" '[a-z0-9]([-.a-z0-9]{0,61}[a-z0-9])?' v2-alpha-tpuv5-lite; fi
if wanted valid_until; then check --valid-until "$valid_until" '[1-9][0-9]{0,5}[smhd]' 6h; fi
if wanted bucket; then
  check --bucket "$bucket" 'gs://[a-z0-9][-._a-z0-9]{1,61}[a-z0-9](/[A-Za-z0-9_][-.A-Za-z0-9_]*)*' gs://my-bucket/runs/first
fi
if wanted workdir; then check --workdir "$workdir" '(/[A-Za-z0-9_][-.A-Za-z0-9_]*)+' /mnt/filestore/scaletot-1; fi
if wanted share; then check --share "$share" '[a-z0-9]([-.a-z0-9]*[a-z0-9])?:(/[A-Za-z0-9_][-.A-Za-z0-9_]*)+' 10.0.0.2:/vol1; fi
if wanted config; then check_recipe; fi
if ((${#overrides[@]})) && [[ -z "$config" || $subcommand != @(check|create|run) ]]; then
  refuse "$subcommand takes no overrides here" 'only check, create and run use them, with --config'
fi

# -- commands -----------------------------------------------------------------------------------------------------------

where=(--zone="$zone")
[[ -z "$project" ]] || where+=(--project="$project")
archive=build/$name.tar.gz

queue() { act gcloud compute tpus queued-resources "$@" "${where[@]}"; }

on_workers() { # one line of shell for every worker
  act gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1"
}

run_status() { on_workers 'if [ -f scaletot/launch/tpu_worker.sh ]; then bash scaletot/launch/tpu_worker.sh status; else echo not set up; fi'; }

# A run reads its recipe at every stage and imports as it goes: under a running one the folder stays as it is.
unpack='if bash scaletot/launch/tpu_worker.sh status 2>/dev/null | grep -q "^running"; then echo "the run goes on, with the code it has"; '
unpack+='else rm -rf scaletot.new && mkdir scaletot.new && tar -xzf scaletot.tar.gz -C scaletot.new && rm -rf scaletot && mv scaletot.new scaletot; fi'

sync_code() {
  archive_commit tar.gz "$archive"
  act gcloud compute tpus tpu-vm scp "$archive" "$name:scaletot.tar.gz" "${where[@]}" --worker=all
  on_workers "$unpack"
}

[[ $subcommand == check ]] || need gcloud 'install the Google Cloud CLI (cloud.google.com/sdk)'

case $subcommand in
  check) fits ;;
  create)
    fits
    options=(--node-id="$name" --accelerator-type="$type" --runtime-version="$runtime")
    [[ -z "$spot" ]] || options+=(--spot)
    [[ -z "$valid_until" ]] || options+=(--valid-until-duration="$valid_until")
    queue create "$name" "${options[@]}"
    ;;
  setup)
    sync_code
    on_workers "bash scaletot/launch/tpu_worker.sh setup${share:+ $share}"
    ;;
  run)
    sync_code
    place=()
    [[ -z "$workdir" ]] || place=(env "SCALETOT_WORKDIR=$workdir")
    on_workers "$(quote "${place[@]+"${place[@]}"}" bash scaletot/launch/tpu_worker.sh start "$bucket" "$config" "${overrides[@]+"${overrides[@]}"}")"
    ;;
  status)
    if [[ -n "$dry_run" ]]; then
      queue describe "$name" --format='value(state.state)'
      run_status
    else
      state=$(queue describe "$name" --format='value(state.state)')
      printf '%s: %s\n' "$name" "$state"
      [[ $state != ACTIVE ]] || run_status
    fi
    ;;
  delete)
    options=(--force)
    [[ -z "$yes" ]] || options+=(--quiet)
    queue delete "$name" "${options[@]}"
    ;;
esac
