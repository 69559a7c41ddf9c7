#!/usr/bin/env bash
# FlashKAT-Base on ImageNet-1k, 8 processes of 128 images, from the weights of a ViT.
# VIT_WEIGHTS are Google's .npz or timm's, by default the file of Google's below.
# DATA_PATH is the data set; NPROC sets another number of processes, further flags win over those here (--model-kwargs as a whole).
set -euo pipefail
if [ -z "${DATA_PATH:-}" ]; then echo "$0: set DATA_PATH to the data set" >&2; exit 2; fi
vit=${VIT_WEIGHTS:-./checkpoints/B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz}
if [ ! -f "$vit" ]; then echo "$0: no file $vit: set VIT_WEIGHTS to the weights of a ViT" >&2; exit 2; fi
exec bash "$(dirname "$0")/../dist_train.sh" "${NPROC:-8}" "$DATA_PATH" --model flash_kat_base_swish_patch16_224 \
    --pretrained-path "$vit" \
    -b 128 --opt adamw --lr 1e-3 --weight-decay 0.05 --epochs 300 --sched cosine --amp --clip-grad 1 \
    --mixup 0.8 --cutmix 1.0 --smoothing 0.1 --drop-path 0.4 --aa rand-m9-mstd0.5 --remode pixel --reprob 0.25 \
    --crop-pct 0.875 --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225 \
    --model-ema --model-ema-decay 0.9999 --model-ema-warmup \
    --model-kwargs m=6 n=4 num_groups=1 den_groups=8 --output output/flash_kat_base_swish_patch16_224_vitft "$@"
