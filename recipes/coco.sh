#!/usr/bin/env bash
# The nine stages on MS COCO, from the images and annotations in D/train2017, D/val2017 and D/annotations:
#   D=../COCO bash recipes/coco.sh
# Optional variables, with their defaults:
#   YEAR=2017           release: 2014 has 82,783 images to train on, 2017 118,287
#   W=imagenet          --weights: imagenet or a file
#   NET=resnest101      backbone
#   NAME=COCO$YEAR      first part of every tag
# Never run on COCO. Estimated: 60 hours on one GPU of 10 TFLOP/s and 16 cores, and 120 GB
# (docs/scaling.md, "2. Where the time goes" and "4. Disk"). The flags are the paper's for VOC unless a comment says otherwise.
# Finished steps are not repeated.
source "$(dirname "$0")/../tools/environment.sh" requirements.txt
: "${D:?the folder of COCO}"
YEAR=${YEAR:-2017} W=${W:-imagenet} NET=${NET:-resnest101}
NAME=${NAME:-COCO$YEAR} SCALES=0.5,1.0,1.5,2.0
DATA=(--dataset "$D/coco$YEAR.csv" --data_dir "$D")

python -m tools.prepare_coco --data_dir "$D" --year "$YEAR"

# A guess: 5 and 15 epochs instead of 15 and 50, because an epoch has ten times the images of VOC's train_aug. The last
# epoch counts, because scoring all masks of train after each epoch takes long.
python train_classification_with_puzzle.py "${DATA[@]}" --weights "$W" --architecture $NET --max_epoch 5 --select last \
    --tag $NAME@cls
python inference_classification.py "${DATA[@]}" --architecture $NET --tag $NAME@cls --domain train --scales $SCALES
CAM=$NAME@cls@train@scale=$SCALES
python evaluate.py "${DATA[@]}" --experiment_name $CAM --domain train

# A guess: VOC's thresholds. COCO has more and smaller objects: choose --threshold of stage 6 by the two evaluations.
python make_affinity_labels.py "${DATA[@]}" --experiment_name $CAM --domain train --fg_threshold 0.40 --bg_threshold 0.10
python train_affinitynet.py "${DATA[@]}" --weights "$W" --architecture $NET --label_name $CAM@aff_fg=0.40_bg=0.10 \
    --tag $NAME@aff
python inference_rw.py "${DATA[@]}" --architecture $NET --model_name $NAME@aff --domain train --cam_dir $CAM
RW=$NAME@aff@train@beta=10@exp_times=8@rw
python evaluate.py "${DATA[@]}" --experiment_name $RW --domain train
python make_pseudo_labels.py "${DATA[@]}" --experiment_name $RW --domain train --threshold 0.35 --crf_iteration 1
python evaluate.py "${DATA[@]}" --experiment_name $RW@crf=1 --domain train

python train_segmentation.py "${DATA[@]}" --weights "$W" --backbone $NET --mode fix --use_gn True --max_epoch 15 --select last \
    --label_name $RW@crf=1 --tag $NAME@seg
python inference_segmentation.py "${DATA[@]}" --backbone $NET --mode fix --use_gn True --tag $NAME@seg --domain val \
    --scales $SCALES --iteration 10
python evaluate.py "${DATA[@]}" --experiment_name $NAME@seg@val@scale=$SCALES@iteration=10 --domain val
echo
python -m tools.report $NAME
