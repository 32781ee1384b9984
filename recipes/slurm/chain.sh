#!/usr/bin/env bash
# Submit the nine stages to Slurm: trainers under torchrun, stages 2, 3, 5, 6 and 8 as job arrays, each after the stage whose output
# it reads:
#   D=../VOCdevkit/VOC2012 bash recipes/slurm/chain.sh
#   DRY_RUN=1 D=../VOCdevkit/VOC2012 bash recipes/slurm/chain.sh          # prints the commands instead of submitting them
# Estimated for VOC on 4 GPUs of 10 TFLOP/s and 16 cores: 4 hours (docs/scaling.md, "2. Where the time goes"). It ran on one
# node of Slurm 22.05 without a GPU (docs/running.md), and in the tests with stand-ins for Slurm; never on several GPUs.
# Optional variables, with their defaults:
#   DATASET=data/voc2012.json DOMAIN=train_aug     data set, and the list that is labelled
#   NAME=VOC NET=resnest101 W=imagenet             first part of every tag, backbone, --weights; a file if nodes are offline
#   SCALES=0.5,1.0,1.5,2.0                         image scales of stages 2 and 8
#   STAGE1= STAGE4= STAGE7=                        more flags of a trainer, such as STAGE1='--max_epoch 5 --select last'
#   STAGE2= STAGE3= STAGE5= STAGE6= STAGE8=        more flags that are not part of a folder's name, such as '--precision bf16'
#   UNTIL=prediction UPLOAD=                       last output: cam, pseudo or prediction; 1: also the file for VOC's server
#   NODES=1 GPUS=4                                 of a trainer; GPUs of each node, 0: a process on its CPUs
#   SHARDS=8 CPUS=8                                jobs of an array; cores of each, and of a trainer per GPU
#   TRAIN_JOB= GPU_JOB= CPU_JOB=                   more flags of sbatch, such as '--partition=gpu --time=8:00:00'
# COCO, after tools.prepare_coco, as in recipes/coco.sh:
#   D=../COCO DATASET=../COCO/coco2017.csv DOMAIN=train NAME=COCO STAGE1='--max_epoch 5 --select last' \
#       STAGE7='--max_epoch 15 --select last' SHARDS=64 bash recipes/slurm/chain.sh
# The flags of the stages are the paper's. Paths are relative to the top of the repository. All nodes must see this folder,
# .venv and the images. When the chain is submitted again, finished steps report so and exit. What the jobs print is in
# experiments/slurm/.
HAS_DRY_RUN=1
source "$(dirname "$0")/../../tools/environment.sh" requirements.txt
: "${D:?the folder of the data set}"
DATASET=${DATASET:-data/voc2012.json} DOMAIN=${DOMAIN:-train_aug} NAME=${NAME:-VOC} NET=${NET:-resnest101} W=${W:-imagenet}
SCALES=${SCALES:-0.5,1.0,1.5,2.0} NODES=${NODES:-1} GPUS=${GPUS:-4} SHARDS=${SHARDS:-8} CPUS=${CPUS:-8}
DATA=(--dataset "$DATASET" --data_dir "$D")
FILES=("${DATA[@]}" --num_workers "$CPUS")
GPU=$([ "$GPUS" = 0 ] || echo --gpus-per-node=1)
CORES=$((CPUS * (GPUS > 1 ? GPUS : 1)))
[ -n "${DRY_RUN:-}" ] || mkdir -p experiments/slurm

# submit AFTER NAME SBATCH_FLAGS -- COMMAND: a job after another one has succeeded. Its id is then in $JOB.
submit() {
    local after=$1 name=$2 flags=()
    shift 2
    while [ "$1" != -- ]; do flags+=("$1") && shift; done
    shift
    [ -z "$after" ] || flags+=("--dependency=afterok:$after" --kill-on-invalid-dep=yes)
    local command=(sbatch --parsable --job-name="$NAME@$name" --output=experiments/slurm/%x-%j.txt "${flags[@]}"
        recipes/slurm/stage.sbatch "$@")
    echo "${command[*]}"
    JOB=$name
    [ -n "${DRY_RUN:-}" ] || JOB=$("${command[@]}") || exit
    JOB=${JOB%%;*}  # the name of a cluster may follow
}
train() { submit "$1" "$2" --nodes="$NODES" --ntasks-per-node=1 --cpus-per-task="$CORES" \
    $([ "$GPUS" = 0 ] || echo --gpus-per-node="$GPUS") ${TRAIN_JOB:-} -- "${@:3}"; }
gpus() { submit "$1" "$2" --array=1-"$SHARDS" --cpus-per-task="$CPUS" $GPU ${GPU_JOB:-} -- "${@:3}"; }
cores() { submit "$1" "$2" --array=1-"$SHARDS" --cpus-per-task="$CPUS" ${CPU_JOB:-} -- "${@:3}"; }
score() {  # no other job waits for it
    local read=$JOB
    submit "$JOB" "$1" --cpus-per-task="$CPUS" ${CPU_JOB:-} -- evaluate.py "${FILES[@]}" --experiment_name "$2" --domain "$3"
    JOB=$read
}

CAM=$NAME@cls@train@scale=$SCALES RW=$NAME@aff@train@beta=10@exp_times=8@rw
train '' cls train_classification_with_puzzle.py "${DATA[@]}" --weights "$W" --architecture $NET --tag $NAME@cls ${STAGE1:-}
gpus $JOB cam inference_classification.py "${FILES[@]}" --tag $NAME@cls --domain $DOMAIN --scales $SCALES ${STAGE2:-}
score cam_score $CAM train
[ "${UNTIL:-}" != cam ] || exit 0
cores $JOB aff_label make_affinity_labels.py "${FILES[@]}" --experiment_name $CAM --domain $DOMAIN ${STAGE3:-}
train $JOB aff train_affinitynet.py "${DATA[@]}" --weights "$W" --architecture $NET --label_name $CAM@aff_fg=0.40_bg=0.10 \
    --tag $NAME@aff ${STAGE4:-}
gpus $JOB rw inference_rw.py "${FILES[@]}" --model_name $NAME@aff --cam_dir $CAM --domain $DOMAIN ${STAGE5:-}
score rw_score $RW train
cores $JOB pseudo make_pseudo_labels.py "${FILES[@]}" --experiment_name $RW --domain $DOMAIN ${STAGE6:-}
score pseudo_score $RW@crf=1 train
[ "${UNTIL:-}" != pseudo ] || exit 0
train $JOB seg train_segmentation.py "${DATA[@]}" --weights "$W" --backbone $NET --label_name $RW@crf=1 --tag $NAME@seg ${STAGE7:-}
SEG=$JOB
gpus $SEG prediction inference_segmentation.py "${FILES[@]}" --tag $NAME@seg --domain val --scales $SCALES ${STAGE8:-}
score prediction_score $NAME@seg@val@scale=$SCALES@iteration=10 val
[ -n "${UPLOAD:-}" ] || exit 0
gpus $SEG test inference_segmentation.py "${FILES[@]}" --tag $NAME@seg --domain test --scales $SCALES ${STAGE8:-}
score upload $NAME@seg@test@scale=$SCALES@iteration=10 test
