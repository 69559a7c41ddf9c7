#!/usr/bin/env bash
# The recipe of KAT's and FlashKAT's published scripts on ImageNet-1k, with their flags word for word.
#
# Usage: recipes/published.sh kat|flash_kat tiny|small|base scratch|vitft [FLAGS]
#   vitft starts from the weights of a ViT.
# Environment:
#   DATA_PATH    the data set
#   NPROC        number of processes (default: 8)
#   VIT_WEIGHTS  for vitft, Google's .npz or timm's file (default: the file named below, in ./checkpoints)
# FLAGS win over those of the recipe, --model-kwargs as a whole.
set -euo pipefail
script=${RECIPE_SCRIPT:-$0}
if [ $# -lt 3 ]; then echo "usage: bash $script kat|flash_kat tiny|small|base scratch|vitft [FLAGS]" >&2; exit 2; fi
kind=$1 size=$2 start=$3
shift 3
if [ -z "${DATA_PATH:-}" ]; then echo "$script: set DATA_PATH to the data set" >&2; exit 2; fi

drop_path=0.1
load=--initial-checkpoint
case $size in
    tiny) vit=Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.03-res_224.npz ;;
    small) vit=S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0.npz load=--pretrained-path ;;
    base) vit=B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz drop_path=0.4 ;;
esac

more=()
if [ "$start" = vitft ]; then
    vit=${VIT_WEIGHTS:-./checkpoints/$vit}
    if [ ! -f "$vit" ]; then echo "$script: no file $vit: set VIT_WEIGHTS to the weights of a ViT" >&2; exit 2; fi
    more+=("$load" "$vit")
    if [ "$load" = --pretrained-path ]; then more+=(--pretrained); fi
fi
if [ "$kind" = flash_kat ]; then more+=(--model-kwargs m=6 n=4 num_groups=1 den_groups=8); fi
read -ra last <<< "${RECIPE_FLAGS:---log-wandb}"

exec bash "$(dirname "$0")/../dist_train.sh" "${NPROC:-8}" "$DATA_PATH" \
    --model "${kind}_${size}_swish_patch16_224" \
    -b 128 --opt adamw --lr 1e-3 --weight-decay 0.05 --epochs 300 \
    --mixup 0.8 --cutmix 1.0 --sched cosine --smoothing 0.1 --drop-path "$drop_path" \
    --aa rand-m9-mstd0.5 --remode pixel --reprob 0.25 --amp \
    --crop-pct 0.875 --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225 \
    --model-ema --model-ema-decay 0.9999 --output "output/kat_${size}_swish_patch16_224" \
    "${more[@]}" "${last[@]}" "$@"
