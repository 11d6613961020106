# shellcheck shell=bash
# What the launch scripts share: quoting, checking arguments, printing instead of running. Sourced, never run.

program=${0##*/}
zone='' project='' type='' config='' dry_run='' # what several scripts take
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

check_slice() { # $type, which becomes what Google calls it
  check --type "$type" '(v2|v3|v4|v5p)-[1-9][0-9]{0,4}|(v5e|v5litepod|v6e)-(1|4|8|16|32|64|128|256)' v5litepod-16
  type=${type/#v5e-/v5litepod-}
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
