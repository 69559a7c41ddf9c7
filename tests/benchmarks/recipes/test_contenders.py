"""Names of contenders, and the flags that they stand for."""

import pytest
from parsing import parse as parse_flags

from benchmarks.recipes.contenders import DATA_SETS, FACTORS, expand, parse
from flashkat.models import create_model

CIFAR10, DIGITS = DATA_SETS["cifar10"], DATA_SETS["digits"]


def read(contender, data=CIFAR10, size="toy"):
    """The flags of ``flashkat train``, as it reads them."""
    return parse_flags("train", *data.flags.split(), *contender.flags(size), "images")


def test_a_name_says_only_what_differs_from_the_recipe():
    assert str(parse("kat,opt=adamw,start=gelu,degrees=3-2", CIFAR10)) == "kat,start=gelu"
    assert str(parse("kat,opt=muon,degrees=5-4", CIFAR10)) == "kat,degrees=5-4,opt=muon"
    assert str(parse("vit,lr=3e-3,mixing=on", DIGITS)) == "vit,mixing=on"


def test_flags_override_those_of_the_recipe():
    args = read(parse("kat", CIFAR10))
    assert (args.opt, args.lr, args.weight_decay, args.mixup, args.cutmix) == ("adamw", 1e-3, 0.05, 0.8, 1.0)
    args = read(parse("kat,opt=muon,lr=2e-3,wd=0.2,mixing=off,rlr=0.7", CIFAR10))
    assert (args.opt, args.lr, args.weight_decay, args.mixup, args.cutmix) == ("muon", 2e-3, 0.2, 0, 0)
    assert (args.rational_lr_scale, args.rational_weight_decay) == (0.7, None)
    assert read(parse("kat,rwd=0", CIFAR10)).rational_weight_decay == 0
    args = read(parse("vit", DIGITS), DIGITS)
    assert (args.lr, args.mixup, args.img_size) == (3e-3, 0, 16)


@pytest.mark.parametrize(
    ("name", "numerators", "denominators", "degrees"),
    [
        ("kat", 1, 8, (4, 2)),
        ("kat,numerators=separate", 8, 8, (4, 2)),
        ("kat,groups=4,degrees=5-4", 1, 4, (6, 4)),
        ("kat,groups=channel,degrees=2-2", 1, 16, (3, 2)),
        ("kat,groups=channel,numerators=separate", 16, 16, (4, 2)),
        ("kat,groups=1,degrees=3-0", 1, 1, (4, 0)),
    ],
)
def test_the_model_has_the_levels(name, numerators, denominators, degrees):
    args = read(parse(name, CIFAR10))
    model = create_model(args.model, img_size=args.img_size, num_classes=2, **args.model_kwargs)
    rational = model.blocks[0].mlp.act1
    assert rational.numerator.shape == (numerators, degrees[0])
    assert rational.denominator.shape == (denominators, degrees[1])


@pytest.mark.parametrize("factor", FACTORS)
def test_every_level_makes_a_model(factor):
    for contender in expand(f"kat,{factor}=all", CIFAR10):
        args = read(contender)
        model = create_model(args.model, img_size=args.img_size, num_classes=2, **args.model_kwargs)
        assert model.blocks[0].mlp.act2.start == contender.level("start")
        timms = contender.level("attention") == "timm"
        assert model.weight_init_mode == ("" if timms else "kan_mimetic")


def test_grids():
    assert [str(each) for each in expand("vit,lr=1e-3+7e-4,wd=all", CIFAR10)] == [
        "vit", "vit,wd=0.2", "vit,lr=7e-4", "vit,lr=7e-4,wd=0.2"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cnn", "no model 'cnn'.*one of kat, vit"),
        ("kat,depth=3", "no factor 'depth' of a kat.*degrees, start"),
        ("vit,degrees=5-4", "no factor 'degrees' of a vit.*choose one of opt, lr, wd"),
        ("kat,degrees=7-7", "no level '7-7' of degrees.*3-2, 5-4"),
        ("kat,lr=fast", "no level 'fast' of lr.*2e-3, or a number above 0"),
        ("kat,lr=inf", "no level 'inf' of lr"),
        ("kat,wd=0", "no level '0' of wd"),
        ("kat,lr=1e-3,lr=2e-3", "lr is twice in .*put plus signs"),
        ("kat,lr", "no level '' of lr"),
    ],
)
def test_what_does_not_exist_is_told(name, message):
    with pytest.raises(ValueError, match=message):
        list(expand(name, CIFAR10))
