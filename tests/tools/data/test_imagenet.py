"""ImageNet's archives in small: they become the layout of training, and nothing else, whatever they hold."""

import gzip
import hashlib
import io
import tarfile

import numpy as np
import pytest
from scipy.io import savemat

from flashkat.cli.main import main
from flashkat.tools.data import imagenet

WNIDS = ["n01440764", "n01443537"]
# Of the images 1 to 3, by the devkit's own numbers of classes.
TRUTH = [2, 1, 2]


def archive(members):
    """The bytes of an archive: a content by its name, or a whole entry."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members.items():
            entry = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content) if isinstance(content, bytes) else None)
    return file.getvalue()


def link(name, target):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    return entry


def training(**more):
    classes = {
        f"{wnid}.tar": archive({f"{wnid}_{number}.JPEG": f"{wnid} {number}".encode() for number in range(2)})
        for wnid in WNIDS
    }
    return archive({**classes, **more})


def devkit():
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    rows = [(1, WNIDS[0], "a", "", 0), (2, WNIDS[1], "b", "", 0), (3, "n00000001", "both", "", 2)]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, dtype=kinds)})
    base = "ILSVRC2012_devkit_t12/data"
    truth = "\n".join(map(str, TRUTH)).encode()
    files = {f"{base}/meta.mat": meta.getvalue(), f"{base}/ILSVRC2012_validation_ground_truth.txt": truth}
    return gzip.compress(archive(files))


VALIDATION = {f"ILSVRC2012_val_{number:08d}.JPEG": f"val {number}".encode() for number in (3, 1, 2)}


@pytest.fixture
def unpack(tmp_path, monkeypatch, capsys):
    """Unpacks archives whose sums are the published ones: the status, the line of the error, the files."""

    def run(train=None, val=None, kit=None, images=None):
        argv, published = ["data", "imagenet", str(tmp_path / "imagenet")], {}
        given = {"train": train, "val": val, "devkit": kit}
        for kind, content in given.items():
            if content is not None:
                (tmp_path / kind).write_bytes(content)
                argv += [f"--{kind}", str(tmp_path / kind)]
                count = (images or {"train": 4, "val": 3}).get(kind, 0)
                published[kind] = imagenet._Published(hashlib.md5(content).hexdigest(), count)
        monkeypatch.setattr(imagenet, "_PUBLISHED", published)
        status = main(argv)
        files = {
            str(path.relative_to(tmp_path)): path.read_text()
            for path in tmp_path.rglob("*")
            if path.is_file() and path.name not in given
        }
        return status, capsys.readouterr().err, files

    return run


EXPECTED = {
    **{f"imagenet/train/{wnid}/{wnid}_{number}.JPEG": f"{wnid} {number}" for wnid in WNIDS for number in range(2)},
    **{
        f"imagenet/val/{WNIDS[truth - 1]}/ILSVRC2012_val_{number:08d}.JPEG": f"val {number}"
        for number, truth in enumerate(TRUTH, start=1)
    },
}


def test_the_layout_of_training(unpack):
    assert unpack(training(), archive(VALIDATION), devkit()) == (0, "", EXPECTED)


def test_it_goes_on_where_it_was_stopped(unpack, tmp_path):
    cut, whole = [each for each in EXPECTED if "/train/" in each][:2]
    for name, content in ((cut, "n0"), (whole, "n01440764 9")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    status, _, files = unpack(training())
    assert status == 0
    assert files[cut] == EXPECTED[cut]
    assert files[whole] == "n01440764 9"  # its size is right, so it is not written again


def test_the_end_of_a_cut_archive_is_missed_and_what_came_before_stays(unpack):
    status, err, files = unpack(training()[:6000])
    assert (status, err.count("\n")) == (2, 1)
    assert "or damaged: download it again" in err
    assert files.items() <= EXPECTED.items()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"../n01440765.jpg": b"x"}, "is no class of ImageNet's"),
        ({"n01440765.tar": archive({"../../../evil": b"x"})}, "is no image of n01440765"),
        ({"n01440765.tar": archive({"n01440764_1.JPEG": b"x"})}, "is no image of n01440765"),
        ({"n01440765.tar": b"no archive"}, "or damaged"),
    ],
)
def test_other_contents_are_refused_and_write_nothing(unpack, more, words):
    status, err, files = unpack(training(**more))
    assert (status, err.count("\n")) == (2, 1)
    assert words in err
    assert files.items() <= EXPECTED.items()


def test_names_lead_nowhere_else(unpack, tmp_path):
    """Folders before a name do not count, and links are left out."""
    inner = {"/etc/n01440765_0.JPEG": b"x", "n01440765_1.JPEG": link("n01440765_1.JPEG", "/etc/passwd")}
    content = archive({"../../n01440765.tar": archive(inner)})
    status, _, files = unpack(content, images={"train": 1})
    assert (status, files) == (0, {"imagenet/train/n01440765/n01440765_0.JPEG": "x"})


def test_sums_and_counts_are_those_of_the_published_archives(unpack, tmp_path, monkeypatch, capsys):
    status, err, _ = unpack(training(), images={"train": 5})
    assert (status, "holds 4 images, not 5" in err) == (2, True)
    other = training(extra=link("extra", "x"))
    (tmp_path / "train").write_bytes(other)
    assert main(["data", "imagenet", str(tmp_path / "imagenet"), "--train", str(tmp_path / "train")]) == 2
    assert f"its MD5 is {hashlib.md5(other).hexdigest()}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "give --train, or --val and --devkit"),
        (["--val", "val.tar"], "give --devkit"),
        (["--train", "no.tar"], "no archive at no.tar"),
    ],
)
def test_what_is_missing(tmp_path, capsys, argv, words):
    assert main(["data", "imagenet", str(tmp_path / "imagenet"), *argv]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "imagenet").exists()


def test_a_devkit_of_others(unpack):
    status, err, files = unpack(None, archive(VALIDATION), gzip.compress(archive({"data/meta.mat": b"x"})))
    assert (status, files) == (2, {})
    assert "is no devkit of ImageNet's" in err
