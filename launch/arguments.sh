# shellcheck shell=bash
# What the launch scripts share: quoting, checking arguments, printing instead of running. Sourced, never run.

program=${0##*/}
name='' zone='' project='' type='' config='' dry_run=''     # what several scripts take
no_check='' local_table='' local_schema='' local_weights='' # see fits
overrides=()

quote() { # words -> one line of POSIX shell, quoted only where needed
  local word separator='' single="'\\''"
  for word in "$@"; do
    if [[ ! "$word" =~ ^[-A-Za-z0-9_./:=,@%+]+$ ]]; then word="'${word//\'/$single}'"; fi
    printf '%s%s' "$separator" "$word"
    separator=' '
  done
}

refuse() { # what, why
  printf '%s: %s\n  why: %s\n' "$program" "$1" "$2" >&2
  exit 2
}

check() { # option, value, grammar, example
  [[ -n "$2" ]] || refuse "$1 is missing" "this subcommand needs it, e.g. $1 $4"
  [[ "$2" =~ ^($3)$ ]] || refuse "$1 $(quote "$2") is not valid" "it must look like $4, by the grammar $3"
}

take_options() { # names of options with a value, names of flags, then the arguments; what follows -- are overrides
  local values=" $1 " flags=" $2 " option
  shift 2
  while (($#)); do
    option=${1#--}
    case $1 in
      --dry-run) dry_run=1 && shift ;;
      -h | --help) usage && exit 0 ;;
      --) shift && overrides=("$@") && return ;;
      --*)
        if [[ $flags == *" $option "* ]]; then
          printf -v "${option//-/_}" '%s' 1
          shift
        elif [[ $values == *" $option "* ]]; then
          (($# > 1)) || refuse "$1 has no value" 'the command line ends there'
          printf -v "${option//-/_}" '%s' "$2"
          shift 2
        else
          refuse "unknown option $(quote "$1")" "see launch/$program --help"
        fi
        ;;
      *) refuse "unknown option $(quote "$1")" "see launch/$program --help" ;;
    esac
  done
}

check_place() { # $zone, $project
  check --zone "$zone" '[a-z]+-[a-z]+[0-9]+-[a-z]' us-west4-a
  [[ -z "$project" ]] || check --project "$project" '([a-z0-9.-]+:)?[a-z][-a-z0-9]{4,28}[a-z0-9]' my-project
}

check_slice() { # $type, which becomes what Google calls it; the numbers are those that Google sells (cloud.google.com/tpu/docs)
  local half='8|16|32|64|128|256|512|1024|2048'
  check --type "$type" "v2-(8|32|128|256|512)|v3-($half)|(v4|v5p)-[1-9][0-9]{0,4}|(v5e|v5litepod|v6e)-(1|4|8|16|32|64|128|256)" \
    v5litepod-16
  if [[ "$type" =~ ^(v4|v5p)-(.*)$ ]]; then # cores, two a chip: small slices double, larger ones are whole cubes of 64 chips
    local cores=${BASH_REMATCH[2]} most=4096
    [[ "$type" == v4-* ]] || most=12288
    [[ $cores =~ ^(8|16|32|64)$ ]] || { ((cores % 128 == 0)) && ((cores <= most)); } ||
      refuse "--type $type is not valid" "there are ${type%-*}-8, -16, -32, -64, and multiples of 128 up to $most"
  fi
  type=${type/#v5e-/v5litepod-}
}

check_local() { # $local_table, $local_schema, $local_weights
  local option path='/?[.A-Za-z0-9_][-.A-Za-z0-9_]*(/[.A-Za-z0-9_][-.A-Za-z0-9_]*)*'
  for option in table schema weights; do
    local value="local_$option"
    if [[ -n "${!value}" ]]; then check "--local-$option" "${!value}" "$path" "here/$option"; fi
  done
}

check_recipe() { # $config and $overrides
  check --config "$config" '([A-Za-z0-9_][-.A-Za-z0-9_]*/)*[A-Za-z0-9_][-.A-Za-z0-9_]*\.py' configs/complete_journey.py
  [[ -f "$config" ]] || refuse "--config $config does not exist" 'a recipe lies in the repository, with the code'
  local override
  for override in "${overrides[@]+"${overrides[@]}"}"; do
    [[ "$override" =~ ^--config\.[a-z_0-9]+(\.[a-z_0-9]+)*=[^[:cntrl:]]*$ ]] ||
      refuse "override $(quote "$override") is not valid" 'after -- stand only --config.key=value pairs'
  done
}

act() { # prints the command or runs it
  if [[ -n "$dry_run" ]]; then
    printf '%s\n' "$(quote "$@")"
  else
    "$@"
  fi
}

need() { # program, how to get it
  [[ -n "$dry_run" ]] || command -v "$1" >/dev/null || {
    printf '%s: %s is not installed\n  what to do: %s, or look at the commands with --dry-run\n' "$program" "$1" "$2" >&2
    exit 5
  }
}

fits() { # before anything is created: would the run refuse this mesh or these keys, and by the TPU compiler, is the memory enough?
  [[ -z "$no_check" ]] || return 0
  local slice=${type/#v5litepod-/v5e-} folder=build/$name.plan code=0 keys=("${overrides[@]+"${overrides[@]}"}")
  case $slice in
    v5e-* | v6e-* | v5p-8 | v5p-16 | v5p-32 | v5p-64 | v5p-128 | v5p-256 | v5p-512) ;;
    *) printf '%s: note: whether the recipe fits a %s is not checked; known are v5e, v6e and v5p of 8, 16, 32 … 512\n' "$program" "$slice" >&2 && return ;;
  esac
  # What the workers find on their disk lies elsewhere here.
  [[ -z "$local_table" ]] || keys+=("--config.data.path=$local_table")
  [[ -z "$local_schema" ]] || keys+=("--config.data.schema=$local_schema")
  [[ -z "$local_weights" ]] || keys+=("--config.lm.weights=$local_weights")
  need scaletot 'activate the environment that make install made, or leave the check out with --no-check'
  act rm -rf "$folder" # a folder of its own: runs/ may hold this very run, or another one
  act scaletot plan --config "$config" --workdir "$folder" --target "$slice" --compile "${keys[@]+"${keys[@]}"}" || code=$?
  act rm -rf "$folder"
  ((code == 0)) || printf '%s: the check failed (%s), so nothing is created; --no-check leaves it out\n' "$program" "$code" >&2
  return "$code"
}

archive_commit() { # format, file: the last commit, never half-edited files, user tables or an environment
  need git 'install git'
  if [[ -z "$dry_run" ]] && ! git cat-file -e "HEAD:$config" 2>/dev/null; then
    refuse "the recipe $config is in no commit" 'the workers get the last commit: add it and commit'
  fi
  if [[ -z "$dry_run" ]] && ! git diff --quiet HEAD --; then
    printf '%s: note: uncommitted changes are not copied; the workers get commit %s\n' "$program" "$(git rev-parse --short HEAD)" >&2
  fi
  act mkdir -p build
  act git archive --format="$1" --output="$2" HEAD
}
