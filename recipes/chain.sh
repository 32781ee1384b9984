#!/usr/bin/env bash
# Table 2 on photographs: the nine stages, trained on train_2007 and scored on train_2007 and val_2007:
#   D=VOC_ROOT W=IMAGENET_WEIGHTS_OF_NET bash recipes/chain.sh
# Measured with the defaults on the 632 photographs of 2007: 70 minutes on one core of a shared machine; CAM 35.7, random walk
# 38.6, pseudo-labels 38.9 % mIoU on train, DeepLabv3+ 29.7 on val (docs/results/chain_photographs.md).
# Optional variables, with their defaults:
#   NET=mobilenet_v2                                backbone
#   LOSS='--loss_option cl'                         flags of stage 1, such as '--loss_option cl_pcl_re --alpha 1'
#   SEG='--image_size 160 --min_image_size 144 --max_image_size 288 --max_epoch 20'    flags of stage 7
#   SEG_SCALES=0.6                                  scales of stage 8
#   NAME=chain                                      first part of every tag
#   THRESHOLDS='0.25 0.35 0.40 0.55 0.45'           thresholds of stage 6; stage 7 trains on the last one
# Finished steps are not repeated, except stage 6. Tables come at the end, and experiments/report.html.
source "$(dirname "$0")/../tools/environment.sh" requirements.txt
: "${D:?the VOC root}" "${W:?the ImageNet weights of the backbone}"
NAME=${NAME:-chain} LOSS=${LOSS:---loss_option cl} SCALES=0.5,1.0,1.5
NET=${NET:-mobilenet_v2}
SEG=${SEG:---image_size 160 --min_image_size 144 --max_image_size 288 --max_epoch 20} SEG_SCALES=${SEG_SCALES:-0.6}
DATA=(--dataset data/voc2012_2007.json --data_dir "$D")
TRAIN=("${DATA[@]}" --num_workers 1 --weights "$W" --momentum 0.9 --batch_size 16)
INFER=("${DATA[@]}" --num_workers 1)

python train_classification_with_puzzle.py "${TRAIN[@]}" --architecture $NET --lr 0.01 --bn_replicas 1 --select last \
    --image_size 256 --min_image_size 224 --max_image_size 384 --max_epoch 12 --tag $NAME@cls $LOSS
for domain in train val; do
    python inference_classification.py "${INFER[@]}" --architecture $NET --tag $NAME@cls --domain $domain --scales $SCALES
    python evaluate.py "${INFER[@]}" --experiment_name $NAME@cls@$domain@scale=$SCALES --domain $domain
done

# AffinityNet trains for 190 steps here; the paper's is trained for 990 steps with twice the batch.
CAM=$NAME@cls@train@scale=$SCALES
python make_affinity_labels.py "${INFER[@]}" --experiment_name $CAM --fg_threshold 0.30 --bg_threshold 0.10
python train_affinitynet.py "${TRAIN[@]}" --architecture $NET --lr 0.05 --label_name $CAM@aff_fg=0.30_bg=0.10 \
    --image_size 320 --min_image_size 256 --max_image_size 400 --max_epoch 10 --tag $NAME@aff
for domain in train val; do
    python inference_rw.py "${INFER[@]}" --architecture $NET --model_name $NAME@aff --domain $domain \
        --cam_dir $NAME@cls@$domain@scale=$SCALES
    python evaluate.py "${INFER[@]}" --experiment_name $NAME@aff@$domain@beta=10@exp_times=8@rw --domain $domain --max_th 0.8
done

# The name of the pseudo-labels does not contain the threshold, so the pseudo-labels of the last threshold remain.
for domain in train val; do
    RW=$NAME@aff@$domain@beta=10@exp_times=8@rw
    for threshold in ${THRESHOLDS:-0.25 0.35 0.40 0.55 0.45}; do
        echo "== pseudo-labels of $domain at threshold $threshold"
        python make_pseudo_labels.py "${INFER[@]}" --experiment_name $RW --domain $domain --threshold $threshold --overwrite
        python evaluate.py "${INFER[@]}" --experiment_name $RW@crf=1 --domain $domain
    done
done

RW=$NAME@aff@train@beta=10@exp_times=8@rw
python train_segmentation.py "${TRAIN[@]}" --backbone $NET --mode normal --lr 0.002 --select last --label_name $RW@crf=1 \
    --tag $NAME@seg $SEG
python inference_segmentation.py "${INFER[@]}" --backbone $NET --mode normal --tag $NAME@seg --scales $SEG_SCALES
python evaluate.py "${INFER[@]}" --experiment_name $NAME@seg@val@scale=$SEG_SCALES@iteration=10 --domain val

for domain in train val; do
    echo
    RW=$NAME@aff@$domain@beta=10@exp_times=8@rw
    rows=("CAM | $NAME@cls@$domain@scale=$SCALES@$domain" "+ RW | $RW@$domain" "+ RW + dCRF | $RW@crf=1@$domain")
    [ $domain = val ] && rows+=("DeepLabv3+ | $NAME@seg@val@scale=$SEG_SCALES@iteration=10@val")
    python -m tools.summarize --thresholds "${rows[@]}"
done
echo
python -m tools.report $NAME
