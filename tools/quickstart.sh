#!/usr/bin/env bash
# The whole pipeline on a drawn data set:  [SEED=0] bash tools/quickstart.sh
# It takes 10 minutes on 2 CPU cores (measured; NOTES.md, 2026-11-30), after the installation. It ends with
# tables (README has them for SEED=0; of maps it has the best mIoU) and experiments/report.html.
# Each command below is a stage of the README with other flags: a small network, from scratch, on small scenes. No ImageNet
# weights exist for it, so stages 4 and 7 start from the classifier of stage 1 instead (--weights).
export OMP_NUM_THREADS=1  # the number of threads changes the order of sums, and so the results
source "$(dirname "$0")/environment.sh" requirements.txt

SEED=${SEED:-0} STEPS=9
D=experiments/demo
NET=resnest14_narrow
DATA="--dataset $D/dataset.json --data_dir $D"
TRAIN="$DATA --num_workers 2 --seed $SEED --momentum 0.9 --image_size 128 --min_image_size 96 --max_image_size 192 --batch_size 16"
CLASSIFIER="$TRAIN --architecture $NET --weights none --lr 0.02 --max_epoch 6 --bn_replicas 1 --select last"

step 'The drawn data set'
python -m tools.make_demo_data --out $D --seed 0

# With one thread, one of two cores would be idle. It trains the plain classifier, which no later stage needs.
train_plain_classifier() {
    python train_classification_with_puzzle.py $CLASSIFIER --loss_option cl --tag demo@cl
    python inference_classification.py $DATA --num_workers 2 --architecture $NET --tag demo@cl --domain train
    python evaluate.py $DATA --experiment_name demo@cl@train@scale=0.5,1.0,1.5,2.0
}
PLAIN_LOG=experiments/logs/quickstart-plain.txt
mkdir -p experiments/logs
step "1 and 2, in the background: a plain classifier (--loss_option cl), its CAMs on train; see $PLAIN_LOG"
set -m  # a separate process group, which ends with this script if something below fails
(train_plain_classifier) >"$PLAIN_LOG" 2>&1 &
PLAIN=$!
set +m
trap 'kill -- -$PLAIN 2>/dev/null || true' EXIT

step '1 and 2: the classifier with the puzzle module, its CAMs'
python train_classification_with_puzzle.py $CLASSIFIER --loss_option cl_pcl_re --alpha 4 --tag demo@puzzle
python inference_classification.py $DATA --num_workers 2 --architecture $NET --tag demo@puzzle --domain train_aug
CAM=demo@puzzle@train@scale=0.5,1.0,1.5,2.0
python evaluate.py $DATA --experiment_name $CAM

step '3: affinity labels'
python make_affinity_labels.py $DATA --num_workers 2 --experiment_name $CAM

step '4: AffinityNet'
python train_affinitynet.py $TRAIN --architecture $NET --weights experiments/models/demo@puzzle.pth --radius 5 \
    --tag demo@affinity --label_name $CAM@aff_fg=0.40_bg=0.10

step '5: random-walk CAMs'
RW=demo@affinity@train@beta=10@exp_times=8@rw
python inference_rw.py $DATA --num_workers 2 --architecture $NET --model_name demo@affinity --cam_dir $CAM --image_size 128 \
    --save_edges
python evaluate.py $DATA --experiment_name $RW

step '6: pseudo-labels'
python make_pseudo_labels.py $DATA --num_workers 2 --experiment_name $RW
python evaluate.py $DATA --experiment_name $RW@crf=1

step '7 and 8: DeepLabv3+, its predictions on val'
python train_segmentation.py $TRAIN --backbone $NET --weights experiments/models/demo@puzzle.pth --mode normal \
    --lr 0.003 --max_epoch 3 --tag demo@deeplab --label_name $RW@crf=1
python inference_segmentation.py $DATA --num_workers 2 --backbone $NET --mode normal --tag demo@deeplab
PREDICTIONS=demo@deeplab@val@scale=0.5,1.0,1.5,2.0@iteration=10
python evaluate.py $DATA --experiment_name $PREDICTIONS --domain val

wait $PLAIN || {
    tail "$PLAIN_LOG"
    echo "the plain classifier failed: see $PLAIN_LOG" >&2
    exit 1
}
trap - EXIT

step 'Results'
python -m tools.summarize \
    "CAM, --loss_option cl | demo@cl@train@scale=0.5,1.0,1.5,2.0@train" \
    "CAM, Puzzle-CAM | $CAM@train" \
    "+ random walk | $RW@train" \
    "+ random walk + CRF: pseudo-labels | $RW@crf=1@train"
echo
python -m tools.summarize "DeepLabv3+ on val | $PREDICTIONS@val"
echo
echo 'best mIoU %: CAMs and random walk at the threshold that is best on the scored masks, as in the table of README.md'
echo 'mIoU %: the same maps, each half of the images at the threshold that is best on the other half'
echo
python -m tools.report demo
echo 'Open experiments/report.html in a browser: tables, curves, and every map of 200 images'
