#!/usr/bin/env bash
# The paper's Table 1 and the choices around it, each over several seeds, on the drawn set:  bash recipes/ablation.sh
#   SEEDS='0 1 2'  EPOCHS=6  JOBS=2 (runs at once, a core each)  WHAT='losses alpha level option pieces'
# A run that has its result is not repeated. The tables come at the end, from tools/summarize.py.
source "$(dirname "$0")/../tools/environment.sh" requirements.txt
SEEDS=${SEEDS:-0 1 2} EPOCHS=${EPOCHS:-6} JOBS=${JOBS:-2} WHAT=${WHAT:-losses alpha level option pieces}
D=experiments/demo
NET=resnest14_narrow
DATA="--dataset $D/dataset.json --data_dir $D"
SCALES=0.5,1.0,1.5,2.0
[ -f $D/dataset.json ] || python tools/make_demo_data.py --out $D --seed 0

run() { # name seed flags: train, infer, evaluate
    local tag="ablation@$1@seed=$2" data="$DATA"
    [ -f "experiments/results/$tag@train@scale=$SCALES@train.json" ] && return
    mkdir -p experiments/logs
    {
        python train_classification_with_puzzle.py $data --num_workers 1 --architecture $NET --weights none \
            --momentum 0.9 --lr 0.02 --batch_size 16 --bn_replicas 1 --image_size 128 --min_image_size 96 \
            --max_image_size 192 --max_epoch "$EPOCHS" --select last --seed "$2" --tag "$tag" "${@:3}"
        python inference_classification.py $data --num_workers 1 --architecture $NET --tag "$tag" --domain train
        python evaluate.py $data --experiment_name "$tag@train@scale=$SCALES"
    } >"experiments/logs/$tag.out" 2>&1 || echo "FAILED: see experiments/logs/$tag.out" >&2
}

pieces="--image_size 192 --min_image_size 144 --max_image_size 288" # a multiple of 16 g for 1, 2, 3 and 4 tiles a side
plan() { # name, then flags: a line for each run, seed by seed, so that every row has its first seed early
    for seed in $SEEDS; do
        for what in $WHAT; do
            case $what in
            losses) for o in cl cl_pcl cl_re cl_pcl_re; do echo "$o $seed --loss_option $o"; done ;;
            alpha) for a in 0.5 1 2 8; do echo "alpha=$a $seed --alpha $a"; done ;;
            level) echo "level=cam $seed --level cam" ;;
            option) for o in none selection; do echo "re_loss_option=$o $seed --re_loss_option $o"; done ;;
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

row() { echo "$1 | ablation@$2@seed=*@train@scale=$SCALES@train${3:+ | $3}"; }
table() { echo; echo "$1"; shift; python tools/summarize.py $DATA "$@"; }
for what in $WHAT; do
    case $what in
    losses) table 'Loss (paper: Table 1, ResNet-50 on VOC)' --picture experiments/ablation.png \
        "$(row L_cls cl 47.82)" "$(row '+ L_p-cls' cl_pcl 47.70)" "$(row '+ L_re' cl_re 49.21)" \
        "$(row 'all three' cl_pcl_re 51.53)" ;;
    alpha) table 'alpha' "$(row 0.5 alpha=0.5)" "$(row 1 alpha=1)" "$(row 2 alpha=2)" "$(row 4 cl_pcl_re)" "$(row 8 alpha=8)" ;;
    level) table 'level' "$(row feature cl_pcl_re)" "$(row cam level=cam)" ;;
    option) table 're_loss_option' "$(row masking cl_pcl_re)" "$(row none re_loss_option=none)" \
        "$(row selection re_loss_option=selection)" ;;
    pieces) table 'num_pieces (at 192 pixels)' "$(row '1 (none)' num_pieces=1)" "$(row 4 num_pieces=4)" \
        "$(row 9 num_pieces=9)" "$(row 16 num_pieces=16)" ;;
    esac
done
