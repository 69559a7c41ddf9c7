"""Configurations from flags, and the parts of a run made from them as training makes them."""

from flashkat.cli.parser import Parser
from flashkat.cli.sections import training_config
from flashkat.cli.train_flags import add_training_arguments
from flashkat.data import loaders
from flashkat.system.compile import choose_for_training
from flashkat.training import optimizer, recipe


def config_of(*argv):
    """The configuration that the arguments of ``flashkat train`` ask for."""
    parser = Parser(prog="flashkat train")
    add_training_arguments(parser)
    return training_config(parser.parse_args([str(argument) for argument in argv]))


def compilation_of(config, device):
    mixing, parallel = config.mixing, config.parallel
    return choose_for_training(
        config.compilation,
        device,
        images=mixing.images(config.data.batch_size),
        accumulates=parallel.grad_accum_steps > 1,
        is_sharded=parallel.fsdp,
    )


def model_of(config, say=lambda line: None):
    return recipe.build_model(config.model, config.data, is_resumed=bool(config.resume.resume), say=say)


def optimizer_of(model, config):
    return optimizer.create_optimizer(model, config.optimizer, config.schedule.lr)


def fused(config, device):
    may_skip = config.runtime.scales_loss or config.nonfinite.limit > 0
    return optimizer.is_fused(config.optimizer, device, may_skip, config.parallel.fsdp)


def loss_of(config):
    return recipe.build_loss(config.loss, is_mixed=config.mixing.is_on, views=config.augmentation.aug_splits)


def mixup_of(config):
    return recipe.build_mixup(
        config.mixing,
        batch_size=config.data.batch_size,
        size=(config.data.img_size, config.data.img_size),
        classes=config.model.num_classes,
        smoothing=config.loss.smoothing,
        has_views=bool(config.augmentation.aug_splits),
    )


def training_loader(dataset, images, config, device):
    return loaders.training_loader(dataset, images, config.data, config.augmentation, config.runtime, device)


def evaluation_loader(dataset, images, config, device, batch_size=None):
    return loaders.evaluation_loader(dataset, images, config.data, config.runtime, device, batch_size)
