#!/usr/bin/env bash
# ScaleToT under Slurm: one job on one or several GPU hosts, a process for every GPU. --help says how.
set -euo pipefail
export LC_ALL=C # [a-z] means exactly these 26 letters

usage() {
  cat <<'TEXT'
launch/slurm.sh --config FILE --workdir DIR [options] [-- --config.key=value ...]

  --config FILE        a recipe inside the repository, e.g. configs/complete_journey.py
  --workdir DIR        the run directory, on a disk that all nodes mount
  --name NAME          of the job (default: scaletot)
  --nodes N            hosts (1)
  --gpus N             GPUs of each, one process for each (1)
  --time TIME          limit, e.g. 12:00:00 or 2-00:00:00
  --partition NAME, --account NAME, --constraint NAME    as sbatch knows them
  --environment DIR    the virtual environment on the nodes (default: .venv of this checkout)
  --dry-run            print the job and the command that submits it, and run nothing; needs no Slurm

The processes find each other through Slurm. Two minutes before the time limit, and when the job is preempted, SFT and OSIPO
save and end with exit code 75; every other stage may be killed at any moment. A job whose tasks were stopped (75, 143), killed
(137) or aborted for the loss of another (134) is put back into the queue, at most 20 times, and continues where it was; one that
was cancelled, or in which a task failed otherwise, is not. With several processes, mesh.data=0 uses every GPU: -- --config.mesh.data=0.

exit codes: 0 submitted, 2 a wrong argument (nothing was run), 5 sbatch is missing, else sbatch's own.
TEXT
}

# shellcheck source=launch/arguments.sh
source "$(dirname "${BASH_SOURCE[0]}")/arguments.sh"

name=scaletot nodes=1 gpus=1 time='' partition='' account='' constraint='' environment='' workdir=''
take_options 'config workdir name nodes gpus time partition account constraint environment' '' "$@"

word='[A-Za-z0-9_][-.A-Za-z0-9_]*'
check --workdir "$workdir" "/?$word(/$word)*" /scratch/scaletot-1
check --name "$name" "$word" scaletot
check --nodes "$nodes" '[1-9][0-9]{0,3}' 2
check --gpus "$gpus" '[1-9][0-9]?' 8
[[ -z "$time" ]] || check --time "$time" '([0-9]+-)?[0-9]{1,3}(:[0-9]{2}){0,2}' 12:00:00
for option in partition account constraint; do
  [[ -z "${!option}" ]] || check "--$option" "${!option}" "$word" gpu
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."
check_recipe
environment=${environment:-$PWD/.venv}
check --environment "$environment" '/?[.A-Za-z0-9_][-.A-Za-z0-9_]*(/[.A-Za-z0-9_][-.A-Za-z0-9_]*)*' /home/me/scaletot/.venv

# Not the run's fault, as in babysit.py: preempted, or another process was lost, of which JAX may abort (134); killed; ended by a signal.
retried='75 | 134 | 137 | 143'

job() {
  cat <<JOB
#!/usr/bin/env bash
#SBATCH --job-name=$name
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$gpus
#SBATCH --gpus-per-node=$gpus
${time:+#SBATCH --time=$time
}${partition:+#SBATCH --partition=$partition
}${account:+#SBATCH --account=$account
}${constraint:+#SBATCH --constraint=$constraint
}#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=$workdir/slurm-%j.log
set -uo pipefail
wrong=$workdir/.slurm-\$SLURM_JOB_ID.wrong # an error of one task: srun reports the highest code, that of the tasks that lost it
rm -f "\$wrong"
export wrong
# Slurm signals all processes of a step, this shell with its scaletot: it lives to see the code with which the save ends.
# It hands no signal on: scaletot has its own, and a second one would end the save.
srun --kill-on-bad-exit=1 bash -c '
trap : TERM
"\$@"
code=\$?
case \$code in 0 | $retried) ;; *) echo "\$code" >"\$wrong" ;; esac
exit "\$code"' \\
  task $(quote "$environment/bin/scaletot" run --config "$config" --workdir "$workdir" "${overrides[@]+"${overrides[@]}"}")
code=\$?
if [[ -s \$wrong ]]; then code=\$(head -n 1 "\$wrong"); fi
# The same command continues. Not for ever: processes that cannot find each other end with 75, too.
case \$code in
  $retried)
    if ((\${SLURM_RESTART_COUNT:-0} < 20)); then
      sleep 5 # where the job was cancelled, SIGTERM is on its way to this shell, too, and ends it here
      scontrol requeue "\$SLURM_JOB_ID"
    fi
    ;;
esac
exit "\$code"
JOB
}

need sbatch 'log in to a node that submits jobs'
if [[ -n "$dry_run" ]]; then
  printf '%s <<'\''JOB'\''\n' "mkdir -p $(quote "$workdir") && sbatch"
  job
  echo JOB
else
  mkdir -p "$workdir"
  job | sbatch
fi
