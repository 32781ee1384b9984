#!/usr/bin/env bash
# The tables of the Puzzle-CAM paper on PASCAL VOC 2012, each ending with our figures beside the paper's:
#   bash recipes/voc.sh 1            Table 1: CAMs of ResNet-50 with four losses, over three seeds
#   bash recipes/voc.sh 2            Table 2: CAMs, random walk and pseudo-labels of four backbones and of the baseline
#   bash recipes/voc.sh 3            Table 3: DeepLabv3+ of two backbones on val, and the files for the VOC test server
#   DRY_RUN=1 bash recipes/voc.sh 2  prints the commands with the hours and the disk space to expect
# Estimated, not measured, for one GPU that sustains 10 TFLOP/s and 8 cores: Table 1 21 hours and 9 GB, Table 2 22 hours and
# 21 GB, Table 3 43 hours and 14 GB (28 hours if Table 2 exists). No table has been run on the whole of VOC 2012, and nothing
# on several GPUs. All three were run through on a dozen photographs with small networks, Table 1 also with two processes on a
# CPU, and Table 3 also with a stand-in for Slurm.
# First: python3 -m tools.prepare_voc --out ..
# Optional variables, with their defaults:
#   D=../VOCdevkit/VOC2012 DATASET=data/voc2012.json DOMAIN=train_aug     images, data set, and the list that is labelled
#   NAME=voc               first part of every tag: choose another one for other settings
#   NETS= LOSSES= SEEDS=   separated by blanks: backbones (Table 1: resnet50; 2: resnet50 resnest50 resnest101 resnest269;
#                          3: resnest101 resnest269), losses (Table 1: cl cl_pcl cl_re cl_pcl_re; 2 and 3: cl_pcl_re, of
#                          ResNet-50 in Table 2 also the baseline cl), and seeds (Table 1: 0 1 2; 2 and 3: 0)
#   W=imagenet             --weights: imagenet or a file
#   SCALES=0.5,1.0,1.5,2.0 image scales of stages 2 and 8
#   MORE= STAGE1= ... STAGE8=    more flags of all trainers, and of a stage, such as MORE='--precision bf16'; those that are
#                          part of a folder's name (thresholds, --beta, --iteration) cannot be changed
#   GPUS=1 CPUS=8          GPUs, each a process of torchrun if there are several; cores for loading images and for CRFs
#   SLURM=                 1 submits the stages by recipes/slurm/chain.sh, whose variables may be set too
#   TFLOPS=10              TFLOP/s that the GPU sustains, for the estimates; steps measured on an H200 in fp32 correspond to 25
# Finished steps are skipped, and a stage that was stopped resumes: run the same command again. Table 3 leaves the upload out
# without the images of the list test in JPEGImages (they come from the VOC server, which asks for a registration).
TABLE=${1:-}
case $TABLE in
    1) NETS=${NETS:-resnet50} LOSSES=${LOSSES:-cl cl_pcl cl_re cl_pcl_re} SEEDS=${SEEDS:-0 1 2} UNTIL=cam ;;
    2) NETS=${NETS:-resnet50 resnest50 resnest101 resnest269} SEEDS=${SEEDS:-0} UNTIL=pseudo ;;
    3) NETS=${NETS:-resnest101 resnest269} LOSSES=${LOSSES:-cl_pcl_re} SEEDS=${SEEDS:-0} UNTIL=prediction ;;
    *) echo 'usage: bash recipes/voc.sh 1|2|3 (Table 1, 2 or 3 of the paper)' >&2 && exit 2 ;;
esac
HAS_DRY_RUN=1
source "$(dirname "$0")/../tools/environment.sh" requirements.txt
D=${D:-../VOCdevkit/VOC2012} DATASET=${DATASET:-data/voc2012.json} DOMAIN=${DOMAIN:-train_aug} NAME=${NAME:-voc}
W=${W:-imagenet} SCALES=${SCALES:-0.5,1.0,1.5,2.0} GPUS=${GPUS:-1} CPUS=${CPUS:-8} TFLOPS=${TFLOPS:-10}
DRY_RUN=${DRY_RUN:-} MORE=${MORE:-}
[ -n "$DRY_RUN" ] || [ -d "$D" ] || { echo "D=$D: no such folder: python3 -m tools.prepare_voc --out .." >&2 && exit 1; }
[ "$TABLE" = 1 ] && DOMAIN=train  # the scored images

# The paper's figures by backbone and loss: CAM, random walk, pseudo-labels, DeepLabv3+ on val.
declare -A PAPER=(
    ['resnet50 cl']='47.82 58.10 59.70' ['resnet50 cl_pcl']=47.70 ['resnet50 cl_re']=49.21
    ['resnet50 cl_pcl_re']='51.53 64.16 64.70' ['resnest50 cl_pcl_re']='57.59 69.48 69.91'
    ['resnest101 cl_pcl_re']='61.85 71.92 72.46 66.9' ['resnest269 cl_pcl_re']='62.45 74.14 74.67 71.9'
)
# Of the classifier and of DeepLabv3+: operations relative to ResNeSt-101 (torch's FlopCounterMode), millions of weights.
declare -A COSTS=(
    [resnet50]='0.52 0.70 24 40' [resnest50]='0.60 0.75 26 42' [resnest101]='1 1 46 63' [resnest269]='2.30 1.82 109 126'
)

START=(python3) WORKERS=$CPUS  # for commands that use GPUs
[ "$GPUS" -le 1 ] || START=(torchrun --standalone --nproc_per_node="$GPUS") WORKERS=$(((CPUS + GPUS - 1) / GPUS))
DATA=(--dataset "$DATASET" --data_dir "$D")
losses() { echo "${LOSSES:-$([ "$1" != resnet50 ] || echo cl) cl_pcl_re}"; }  # the losses of a backbone
has_result() { [ -f "experiments/results/$1.json" ] || [ -f "experiments/results/$1.tgz" ]; }
UPLOAD=  # 1: the images of the list test exist (a dry run assumes so)
if [ "$TABLE" = 3 ] && [ -n "$DRY_RUN" ]; then
    ! grep -q '"test"' "$DATASET" || UPLOAD=1
elif [ "$TABLE" = 3 ]; then
    UPLOAD=$(python - "$DATASET" "$D" <<'PYTHON'
import sys
from core.data.dataset import open_dataset
dataset = open_dataset(*sys.argv[1:])
if 'test' in dataset.lists and dataset.image_path(dataset.ids('test')[0]).is_file():
    print(1)
PYTHON
    )
fi

# The plan: commands, with the hours and gigabytes to expect of each ---------------------------------------------------
PLAN=() HOURS=() GIGABYTES=()

# plan PFLOP CORE_MINUTES GIGABYTES COMMAND: PFLOP are for ResNeSt-101 with the paper's settings (docs/voc.md), times the factor
# before them
plan() {
    local word line=
    for word in "${@:4}"; do
        [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word=$(printf '%q' "$word")
        line+="$word "
    done
    PLAN+=("${line% }")
    HOURS+=("$(awk "BEGIN { print ($1) / (3.6 * $TFLOPS * ($GPUS > 1 ? $GPUS : 1)) + ($2) / (60 * $CPUS) }")")
    GIGABYTES+=("$(awk "BEGIN { print $3 }")")
}
gpus() { plan "${@:2:3}" "${START[@]}" "$1" "${DATA[@]}" --num_workers "$WORKERS" "${@:5}"; }
cores() { plan "${@:2:3}" python3 "$1" "${DATA[@]}" --num_workers "$CPUS" "${@:5}"; }
score() { has_result "$1@$2" || cores evaluate.py 0 8 0 --experiment_name "$1" --domain "$2"; }

# name NET LOSS SEED: set the names of the outputs, the same as in recipes/slurm/chain.sh
name() {
    P=$NAME@$1@$2@seed=$3
    CAM=$P@cls@train@scale=$SCALES RW=$P@aff@train@beta=10@exp_times=8@rw
    VAL=$P@seg@val@scale=$SCALES@iteration=10 TEST=$P@seg@test@scale=$SCALES@iteration=10
    case $UNTIL in cam) LAST=$CAM@train ;; pseudo) LAST=$RW@crf=1@train ;; prediction) LAST=$VAL@val ;; esac
}
is_finished() { has_result "$LAST" && { [ -z "$UPLOAD" ] || has_result "$TEST@test"; }; }
make_labels() {
    local share=1 ways=2
    [ "$2" != cl ] || ways=1  # no tiles
    [ "$DOMAIN" != train ] || share=0.14
    gpus train_classification_with_puzzle.py "68.5 * $ways * $CLS" 0 "0.017 * $CLS_WEIGHTS" --weights "$W" \
        --architecture "$1" --loss_option "$2" --seed "$3" --tag "$P@cls" $MORE ${STAGE1:-}
    gpus inference_classification.py "14 * $share * $CLS" 0 "2.4 * $share" --tag "$P@cls" --domain "$DOMAIN" \
        --scales "$SCALES" ${STAGE2:-}
    score "$CAM" train
    [ "$UNTIL" != cam ] || return 0
    cores make_affinity_labels.py 0 80 0.1 --experiment_name "$CAM" --domain "$DOMAIN" ${STAGE3:-}
    gpus train_affinitynet.py "4 * $CLS" 0 "0.013 * $CLS_WEIGHTS" --weights "$W" --architecture "$1" --seed "$3" \
        --tag "$P@aff" --label_name "$CAM@aff_fg=0.40_bg=0.10" $MORE ${STAGE4:-}
    gpus inference_rw.py "3 * $CLS" 20 0.2 --model_name "$P@aff" --cam_dir "$CAM" --domain "$DOMAIN" ${STAGE5:-}
    score "$RW" train
    cores make_pseudo_labels.py 0 25 0.1 --experiment_name "$RW" --domain "$DOMAIN" ${STAGE6:-}
    score "$RW@crf=1" train
}
segment() {
    local domain
    gpus train_segmentation.py "345 * $SEG" 0 "0.016 * $SEG_WEIGHTS" --weights "$W" --backbone "$1" --seed "$3" \
        --tag "$P@seg" --label_name "$RW@crf=1" $MORE ${STAGE7:-}
    for domain in val ${UPLOAD:+test}; do
        gpus inference_segmentation.py "3 * $SEG" 20 0.1 --tag "$P@seg" --domain "$domain" --scales "$SCALES" ${STAGE8:-}
        score "$P@seg@$domain@scale=$SCALES@iteration=10" "$domain"
    done
}
submit() {
    local flags="--seed $3 $MORE"
    [ -n "$DRY_RUN" ] || echo "== $P"
    NAME=$P NET=$1 D=$D DATASET=$DATASET DOMAIN=$DOMAIN W=$W SCALES=$SCALES GPUS=$GPUS CPUS=$CPUS UNTIL=$UNTIL UPLOAD=$UPLOAD \
        STAGE1="--loss_option $2 $flags ${STAGE1:-}" STAGE4="$flags ${STAGE4:-}" STAGE7="$flags ${STAGE7:-}" \
        bash recipes/slurm/chain.sh
    SUBMITTED=1
}

SUBMITTED=
for seed in $SEEDS; do
    for net in $NETS; do
        read -r CLS SEG CLS_WEIGHTS SEG_WEIGHTS <<<"${COSTS[$net]:-0 0 0 0}"
        for loss in $(losses "$net"); do
            name "$net" "$loss" "$seed"
            ! is_finished || continue
            if [ -n "${SLURM:-}" ]; then
                submit "$net" "$loss" "$seed"
                continue
            fi
            has_result "$RW@crf=1@train" || make_labels "$net" "$loss" "$seed"
            [ "$UNTIL" != prediction ] || segment "$net" "$loss" "$seed"
        done
    done
done

if [ -n "$DRY_RUN" ]; then
    sum() { printf '%s\n' "$@" | awk '{ all += $1 } END { printf "%.1f", all }'; }
    [ -n "${SLURM:-}" ] || cat <<END
# Table $TABLE: ${#PLAN[@]} commands, $(sum 0 "${HOURS[@]}") hours, $(sum 0 "${GIGABYTES[@]}") GB.
# All times and sizes are estimates, for the published settings; GPUs: $GPUS of $TFLOPS TFLOP/s, cores: $CPUS. 0: unknown.
END
fi
STEPS=${#PLAN[@]}
for i in "${!PLAN[@]}"; do
    if [ -n "$DRY_RUN" ]; then
        printf '# %.0f minutes, %.1f GB\n%s\n' "$(awk "BEGIN { print 60 * ${HOURS[i]} }")" "${GIGABYTES[i]}" "${PLAN[i]}"
    else
        step "${PLAN[i]}"
        eval "${PLAN[i]}" || { echo 'this step failed; the same command resumes there' >&2 && exit 1; }
    fi
done
if [ -n "$SUBMITTED" ] && [ -z "$DRY_RUN" ]; then
    echo 'Run the same command again when the jobs have ended: it prints the table.'
    exit
fi

# The tables: a row TITLE | NAME | PUBLISHED of each network ------------------------------------------------------------
[ "$(wc -w <<<"$SEEDS")" = 1 ] && every=$SEEDS || every='*'
declare -A TITLES=(
    [cl]='L_cls' [cl_pcl]='L_cls, L_p-cls' [cl_re]='L_cls, L_re' [cl_pcl_re]='L_cls, L_p-cls, L_re'
)
ROWS=()
row() { ROWS+=("$1 | $2${3:+ | $3}"); }
for net in $NETS; do
    for loss in $(losses "$net"); do
        name "$net" "$loss" "$every"
        read -r cam walk pseudo val _ <<<"${PAPER[$net $loss]:-} "
        title="$net, ${TITLES[$loss]:-$loss}"
        case $UNTIL in
            cam) row "$title" "$CAM@train" "$cam" ;;
            pseudo)
                row "$title: CAM" "$CAM@train" "$cam"
                row "$title: + random walk" "$RW@train" "$walk"
                row "$title: + CRF" "$RW@crf=1@train" "$pseudo"
                ;;
            prediction) row "$title: DeepLabv3+ on val" "$VAL@val" "$val" ;;
        esac
    done
done
if [ -n "$DRY_RUN" ]; then
    printf 'python3 -m tools.summarize%s\n' "$(printf ' %q' "${ROWS[@]}")"
    exit
fi
echo
echo "Table $TABLE of the paper. 'published %' are the paper's figures (Jo and Yu, ICIP 2021), all others are ours."
echo "Compare the 'best mIoU %' of CAMs and random walks with them: these thresholds were chosen on the scored masks too."
python -m tools.summarize "${ROWS[@]}"
[ "$TABLE" != 3 ] || echo 'On test, scored by the VOC server, the paper reports 67.7 (resnest101) and 72.2 (resnest269).'
if [ -n "$UPLOAD" ]; then
    echo 'Upload to the VOC server: experiments/results/*@seg@test@*.tgz'
elif [ "$TABLE" = 3 ]; then
    echo "No upload was made: $D/JPEGImages lacks the images of the list test"
fi
