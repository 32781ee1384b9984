#!/usr/bin/env bash
# The paper's Table 1 and the choices around it, each over several seeds:  bash recipes/ablation.sh
#   SEEDS='0 1 2'  JOBS=2 (runs at once, a core each)  WHAT='losses alpha level option images steps pieces'
#   ON=drawn (the quickstart's scenes), or ON=photographs with D=VOC_ROOT and W=MOBILENET_V2_IMAGENET_FILE
#   NAME, NET, SCALES, MORE: names of the runs, the network, scales of stage 2, further flags of stage 1, to try something
#   else in the same way; WHAT=pair is cl and cl_pcl_re alone; WHAT=images the same on other images, as many steps
# A run that has its result is not repeated. The tables come at the end, from tools/summarize.py.
source "$(dirname "$0")/../tools/environment.sh" requirements.txt
SEEDS=${SEEDS:-0 1 2} JOBS=${JOBS:-2} ON=${ON:-drawn} MORE=${MORE:-}
case $ON in
drawn)
    WHAT=${WHAT:-losses alpha level option images steps pieces}
    D=experiments/demo
    [ -f $D/dataset.json ] || python tools/make_demo_data.py --out $D --seed 0
    # The 300 scenes that are scored, as if there were no others to learn from.
    sed 's/train_aug.txt/train.txt/' $D/dataset.json >$D/few.json
    NAME=${NAME:-ablation} NET=${NET:-resnest14_narrow} SCALES=${SCALES:-0.5,1.0,1.5,2.0} EPOCHS=6 ALPHA=4
    OTHER=300 OTHER_IMAGES="--dataset $D/few.json --max_epoch $((5 * EPOCHS))"
    DATA="--dataset $D/dataset.json --data_dir $D"
    TRAIN="--weights none --lr 0.02 --batch_size 16 --bn_replicas 1"
    TRAIN+=" --image_size 128 --min_image_size 96 --max_image_size 192"
    ;;
photographs)
    WHAT=${WHAT:-losses}
    : "${D:?the VOC root}" "${W:?the ImageNet file of mobilenet_v2}"
    NAME=${NAME:-photographs} NET=${NET:-mobilenet_v2} SCALES=${SCALES:-0.5,1.0} EPOCHS=8 ALPHA=1
    # Twice the images: the image-level labels of val too. What is scored stays train.
    mkdir -p experiments/photographs
    cat data/voc2012/train_2007.txt data/voc2012/val_2007.txt >experiments/photographs/both.txt
    sed 's|voc2012/|../../data/voc2012/|; s|\("train_aug": "\).*train_2007|\1both|' data/voc2012_2007.json \
        >experiments/photographs/both.json
    OTHER=632 OTHER_IMAGES="--dataset experiments/photographs/both.json --max_epoch $((EPOCHS / 2))"
    DATA="--dataset data/voc2012_2007.json --data_dir $D"
    TRAIN="--weights $W --mode fix --lr 0.01 --batch_size 8 --image_size 256 --min_image_size 224 --max_image_size 384"
    ;;
esac

run() { # name seed flags: train, infer, evaluate
    local tag="$NAME@$1@seed=$2"
    [ -f "experiments/results/$tag@train@scale=$SCALES@train.json" ] && return
    mkdir -p experiments/logs
    {
        python train_classification_with_puzzle.py $DATA --num_workers 1 --architecture $NET --momentum 0.9 $TRAIN \
            --max_epoch $EPOCHS --alpha $ALPHA --select last --seed "$2" --tag "$tag" "${@:3}" $MORE
        python inference_classification.py $DATA --num_workers 1 --architecture $NET --tag "$tag" --domain train \
            --scales $SCALES
        python evaluate.py $DATA --experiment_name "$tag@train@scale=$SCALES"
    } >"experiments/logs/$tag.out" 2>&1 || echo "FAILED: see experiments/logs/$tag.out" >&2
}

# A multiple of 16 g for 1, 2, 3 and 4 tiles a side; on the few scenes, for it takes its time.
pieces="--image_size 192 --min_image_size 144 --max_image_size 288 --dataset $D/few.json --max_epoch $((2 * EPOCHS))"
plan() { # a line for each run: name, seed, flags. Seed by seed, so that every row has its first one early
    for seed in $SEEDS; do
        for what in $WHAT; do
            case $what in
            pair) for o in cl cl_pcl_re; do echo "$o $seed --loss_option $o"; done ;;
            losses) for o in cl cl_pcl cl_re cl_pcl_re; do echo "$o $seed --loss_option $o"; done ;;
            alpha) for a in 0.5 1 2 4 8; do [ $a = $ALPHA ] || echo "alpha=$a $seed --alpha $a"; done ;;
            level) echo "level=cam $seed --level cam" ;;
            option) for o in none selection; do echo "re_loss_option=$o $seed --re_loss_option $o"; done ;;
            images) for o in cl cl_pcl_re; do
                echo "images=${OTHER}_$o $seed --loss_option $o $OTHER_IMAGES"
            done ;;
            steps) for o in cl cl_pcl_re; do
                echo "steps=third_$o $seed --loss_option $o --max_epoch $((EPOCHS / 3))"
            done ;;
            pieces) for p in 1 4 9 16; do echo "num_pieces=$p $seed --num_pieces $p $pieces"; done ;;
            esac
        done
    done
}

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
plan | {
    while read -r line; do
        while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do wait -n; done
        run $line </dev/null &
    done
    wait
}

row() { echo "$1 | $NAME@$2@seed=*@train@scale=$SCALES@train${3:+ | $3}"; }
at_alpha() { if [ "$1" = $ALPHA ]; then row "$1" cl_pcl_re; else row "$1" "alpha=$1"; fi; }
table() { echo; echo "$1"; shift; python tools/summarize.py $DATA "$@"; }
for what in $WHAT; do
    case $what in
    losses) table 'Loss (paper: Table 1, ResNet-50 on VOC)' --picture experiments/$NAME.png --images 8 \
        "$(row L_cls cl 47.82)" "$(row '+ L_p-cls' cl_pcl 47.70)" "$(row '+ L_re' cl_re 49.21)" \
        "$(row 'all three' cl_pcl_re 51.53)" ;;
    alpha) table 'alpha' "$(at_alpha 0.5)" "$(at_alpha 1)" "$(at_alpha 2)" "$(at_alpha 4)" "$(at_alpha 8)" ;;
    level) table 'level' "$(row feature cl_pcl_re)" "$(row cam level=cam)" ;;
    option) table 're_loss_option' "$(row masking cl_pcl_re)" "$(row none re_loss_option=none)" \
        "$(row selection re_loss_option=selection)" ;;
    pair) table 'Loss' "$(row L_cls cl)" "$(row 'all three' cl_pcl_re)" ;;
    images) table "$OTHER images, as many steps" "$(row L_cls images=${OTHER}_cl)" \
        "$(row 'all three' images=${OTHER}_cl_pcl_re)" ;;
    steps) table 'A third of the steps' "$(row L_cls steps=third_cl)" "$(row 'all three' steps=third_cl_pcl_re)" ;;
    pieces) table 'num_pieces (300 scenes, 192 pixels)' "$(row '1 (none)' num_pieces=1)" "$(row 4 num_pieces=4)" \
        "$(row 9 num_pieces=9)" "$(row 16 num_pieces=16)" ;;
    esac
done
