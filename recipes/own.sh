#!/usr/bin/env bash
# From a folder of tagged photographs to their masks, the commands of docs/own_images.md, "One command, or five":
#   CSV=labels.csv D=photos bash recipes/own.sh      (with a folder per class: CSV=photos D=photos)
# The classifier has L_cls alone: on 311 photographs the puzzle module (alpha 0.5) cost 1.4 to 2.1 points. AffinityNet learns
# from the published read-out and walks from --cam mean with --beta 40, better than the published read-out with --beta 20 on 78
# and 311 photographs, by 0.6 to 10.5 points (docs/results/photographs.md and few_images.md; other numbers were not tried).
# It writes masks and overlays to experiments/predict/NAME. Measured with 78 photographs of VOC and 25 epochs: 20 minutes on
# one CPU core; with 38 epochs: masks of 42.9 and 46.8 % mIoU (two seeds). Time grows with photographs times epochs. DEEPLAB=1
# takes longer than the rest.
# Optional variables, with their defaults:
#   NAME=own              name of models and outputs
#   NET=mobilenet_v2      backbone
#   W=imagenet            --weights: imagenet, none or a file
#   EPOCHS                of both networks (default: 3,000 / number of photographs, but at least 3)
#   LR=0.01               of the classifier
#   SIZES='--image_size 256 --min_image_size 224 --max_image_size 384'
#   DEEPLAB=              1 also trains DeepLabv3+ on the masks, for photographs without tags
#   OVERWRITE=            --overwrite starts over, after tags or photographs have changed
# If the CSV has a column "mask", ten masks or more choose beta, normalisation and threshold (tools.tune). Finished steps are
# not repeated, except this one and the masks.
: "${CSV:?the CSV of images and classes, or a folder per class}" "${D:?the folder of photographs}"
CSV=$(realpath "$CSV") || exit; D=$(realpath "$D") || exit
[ -e "${W:-}" ] && W=$(realpath "$W")
source "$(dirname "$0")/../tools/environment.sh" requirements.txt
NAME=${NAME:-own} NET=${NET:-mobilenet_v2} W=${W:-imagenet} LR=${LR:-0.01} OVERWRITE=${OVERWRITE:-}
# Files of a folder, or lines of a CSV for any line ending. A line of classes, which an import adds, changes no epochs.
PHOTOGRAPHS=$(
    { if [ -d "$CSV" ]; then find -L "$CSV" -type f; else tr '\r' '\n' < "$CSV" | grep -v '^"*#'; fi | grep -c .; } 2> /dev/null
) || PHOTOGRAPHS=1  # errors of the data set are shown below
EPOCHS=${EPOCHS:-$((3000 / PHOTOGRAPHS > 3 ? 3000 / PHOTOGRAPHS : 3))}
SIZES=${SIZES:---image_size 256 --min_image_size 224 --max_image_size 384}
DATA=(--dataset "$CSV" --data_dir "$D")
TRAIN=("${DATA[@]}" --architecture "$NET" --weights "$W" --batch_size 16 --momentum 0.9 $SIZES --max_epoch "$EPOCHS" $OVERWRITE)
CAM=$NAME@train@scale=0.5,1.0,1.5,2.0
STEPS=$([ -z "${DEEPLAB:-}" ] && echo 6 || echo 9)
MASKS=$([ -d "$CSV" ] || grep -s -m 1 -v '^#' "$CSV" | grep -iw mask) || MASKS=  # in the header, after a line of classes
# 1 if the data set has no background: its classes compete with one another instead of with a threshold.
COVERED=$(python -c 'import sys; from core.data.dataset import open_dataset as o; print("" if o(*sys.argv[1:]).has_background else 1)' \
    "$CSV" "$D" 2>/dev/null) || COVERED=
if [ -n "$COVERED" ]; then  # the settings that have been tried without a background
    MASKS='' LABELS=$CAM@aff_fg=0.40 READ_OUT=published WALKED=$CAM BETA=20
else
    LABELS=$CAM@aff_fg=0.40_bg=0.10 READ_OUT=mean WALKED=${CAM/@scale/@cam=mean@scale} BETA=40
fi
WALKING="--beta $BETA" WALK=$NAME@affinity@train@beta=$BETA@exp_times=8@rw THRESHOLD=0.45
[ -z "$MASKS" ] || STEPS=$((STEPS + 1))

step 'Check the data set'
python -m tools.check_dataset "${DATA[@]}"
step "Train the classifier for $EPOCHS epochs"
# The last epoch: a few masks that come later would otherwise choose another one, and all steps would start over.
python train_classification_with_puzzle.py "${TRAIN[@]}" --tag "$NAME" --loss_option cl --bn_replicas 1 --lr "$LR" --select last
step 'CAMs'
python inference_classification.py "${DATA[@]}" --tag "$NAME" $OVERWRITE
[ -z "$MASKS${DEEPLAB:-}" ] || [ "$WALKED" = "$CAM" ] || \
    python inference_classification.py "${DATA[@]}" --tag "$NAME" --cam "$READ_OUT" $OVERWRITE
step 'Affinity labels'
python make_affinity_labels.py "${DATA[@]}" --experiment_name "$CAM" $OVERWRITE
step "Train AffinityNet for $EPOCHS epochs"
python train_affinitynet.py "${TRAIN[@]}" --tag "$NAME@affinity" --label_name "$LABELS" --lr 0.05
if [ -n "$MASKS" ]; then
    step 'Choose beta, normalisation and threshold'
    python -m tools.tune "$WALKED" "${DATA[@]}" --model_name "$NAME@affinity" $WALKING --threshold $THRESHOLD
    chosen() { python -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "experiments/tune/$WALKED.json" "$1"; }
    WALKING=$(chosen walk_flags)
    WALK=$(chosen walk_dir)
    THRESHOLD=$(chosen threshold)
fi
THRESHOLD=$([ -n "$COVERED" ] || echo "--threshold $THRESHOLD")
step 'Masks'
python -m tools.predict "experiments/models/$NAME.pth" --affinity "experiments/models/$NAME@affinity.pth" \
    --cam "$READ_OUT" $WALKING $THRESHOLD --overwrite "${DATA[@]}"

if [ -n "${DEEPLAB:-}" ]; then
    step 'Random-walk CAMs'
    python inference_rw.py "${DATA[@]}" --model_name "$NAME@affinity" --cam_dir "$WALKED" $WALKING $OVERWRITE
    step 'Pseudo-labels'
    python make_pseudo_labels.py "${DATA[@]}" --experiment_name "$WALK" $THRESHOLD $OVERWRITE
    step "Train DeepLabv3+ for $((EPOCHS * 5 / 2)) epochs"
    python train_segmentation.py "${DATA[@]}" --backbone "$NET" --weights "experiments/models/$NAME.pth" --mode normal \
        --lr 0.002 --batch_size 16 --momentum 0.9 --image_size 256 --min_image_size 192 --max_image_size 512 \
        --max_epoch $((EPOCHS * 5 / 2)) --label_name "$WALK@crf=1" --tag "$NAME@deeplab" $OVERWRITE
    echo "for other photographs: python -m tools.predict experiments/models/$NAME@deeplab.pth FOLDER --scales 0.75"
fi
