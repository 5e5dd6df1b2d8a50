#!/bin/sh
# Budgets on a GPU: what a tune answers in about a minute and a half, and how long its whole process takes.
#   sh benchmarks/gpu_budgets.sh OUT [CASE …]
out=$1; shift
cases="${*:-llama bert mistral roberta modernbert}"
one() { # name, shape, budget, workload flags
  name=$1 shape=$2 budget=$3; shift 3
  case " $cases " in *" $name "*) ;; *) return ;; esac
  [ -z "$budget" ] || set -- "$@" --budget "$budget"  # else the default one
  echo "\$ advisor tune shapes/$shape.json $*"
  began=$(date +%s)
  ADVISOR_DATABASE_URL="sqlite:///$out/$name.db" COLUMNS=150 python3 -m advisor tune "benchmarks/shapes/$shape.json" "$@" >"$out/$name.out" 2>"$out/$name.err"
  echo "status $?, $(($(date +%s) - began)) s by the clock"
  cat "$out/$name.out" "$out/$name.err" | grep -v '^ *$' | sed -n '/configurations are admissible/,/^refused/p' | head -60
  echo
}
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
one llama llama-3.2-1b 90s --lengths 2048 --padding 0.3 --batch 8
one bert bert-base 90s --lengths 256 --padding 0.3 --batch 256
one mistral mistral-7b 100s --lengths 2048 --padding 0.3 --batch 8
one roberta roberta-large 90s --lengths 512 --padding 0.3 --batch 32
one modernbert modernbert-base 90s --lengths 1024 --padding 0.5 --batch 32
one bert-60 bert-base 60s --lengths 256 --padding 0.5 --batch 256
one llama-60 llama-3.2-1b 60s --lengths 2048 --padding 0.3 --batch 8
one bert-default bert-base "" --lengths 256 --padding 0.5 --batch 256
one llama-default llama-3.2-1b "" --lengths 2048 --padding 0.3 --batch 8
one llama8b-default llama-3-8b "" --lengths 2048 --padding 0.3 --batch 8
one llama-4m llama-3.2-1b 4m --lengths 2048 --padding 0.3 --batch 8
