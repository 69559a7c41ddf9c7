"""The flags of timm's scripts that FlashKAT does not have, and why."""

from typing import NamedTuple

__all__ = ["LEFT_OUT"]


class LeftOut(NamedTuple):
    """The reason why a flag is missing.

    Attributes:
        reason: the reason, for the user.
        is_switch: False for a setting that has no effect until another flag is given.
    """

    reason: str
    is_switch: bool = True


_NO_BATCH_NORM = "these models have layer norms, no batch norms"
_SCRIPT = "TorchScript is deprecated and does not support custom operators. Use --torchcompile"
_NAFLEX = "KATs have a fixed patch grid. NaFlex needs timm's NaFlexVit"
_ONE_SIZE = "training keeps one size of images and batches, so that whole steps are CUDA graphs"
_WHOLE_EPOCHS = "an epoch is a pass over the data. --epoch-repeats makes it longer or shorter"
_FEATURES = "only outputs are distilled here. Distilling features would train a projection beside the model"

LEFT_OUT: dict[str, LeftOut] = {
    "--fuser": LeftOut("it picks a fuser of TorchScript. torch.compile has its own"),
    "--torchscript": LeftOut(_SCRIPT),
    "--aot-autograd": LeftOut("use --torchcompile aot_eager, or --torchcompile for its successor"),
    "--reparam": LeftOut("these models have no branches to merge after training"),
    "--test-pool": LeftOut("it pools the feature map of a CNN for larger images. These models take --img-size"),
    "--tf-preprocessing": LeftOut("it reproduces models that were ported from TensorFlow"),
    "--drop-connect": LeftOut("timm's old name for --drop-path"),
    "--drop-block": LeftOut("it drops regions of a CNN's feature maps"),
    "--bn-momentum": LeftOut(_NO_BATCH_NORM),
    "--bn-eps": LeftOut(_NO_BATCH_NORM),
    "--split-bn": LeftOut(_NO_BATCH_NORM),
    "--naflex-loader": LeftOut(_NAFLEX),
    "--naflex-train-seq-lens": LeftOut(_NAFLEX, is_switch=False),
    "--naflex-max-seq-len": LeftOut(_NAFLEX, is_switch=False),
    "--naflex-patch-sizes": LeftOut(_NAFLEX, is_switch=False),
    "--naflex-patch-size-probs": LeftOut(_NAFLEX, is_switch=False),
    "--naflex-loss-scale": LeftOut(_NAFLEX, is_switch=False),
    "--naflex-patchify-channels-first": LeftOut(_NAFLEX),
    "--train-img-sizes": LeftOut(_ONE_SIZE),
    "--train-batch-sizes": LeftOut(_ONE_SIZE),
    "--train-size-probs": LeftOut(_ONE_SIZE, is_switch=False),
    "--train-size-random-mix": LeftOut(_ONE_SIZE, is_switch=False),
    "--train-size-schedule": LeftOut(_ONE_SIZE, is_switch=False),
    "--train-size-schedule-spread": LeftOut(_ONE_SIZE, is_switch=False),
    "--train-batches-per-epoch": LeftOut(_WHOLE_EPOCHS),
    "--train-steps-per-epoch": LeftOut(_WHOLE_EPOCHS),
    "--variable-batch-loss-scale": LeftOut(_ONE_SIZE, is_switch=False),
    "--kd-student-feature-dim": LeftOut(_FEATURES, is_switch=False),
    "--kd-teacher-feature-dim": LeftOut(_FEATURES, is_switch=False),
    "--kd-token-distill-type": LeftOut("KATs have no distillation token", is_switch=False),
    "--apex-amp": LeftOut("older timm's flag for NVIDIA's Apex. Use --amp"),
    "--native-amp": LeftOut("older timm's name for --amp"),
}
