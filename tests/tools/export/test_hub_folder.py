"""The folder that timm and the Hugging Face Hub load."""

import json

import huggingface_hub
import pytest
import timm
import torch
import yaml

from flashkat.cli.main import main
from flashkat.evaluation import Config, Trained
from flashkat.tools.export.restored import restored


def test_timm_loads_it(shipped):
    model = timm.create_model(f"local-dir:{shipped.folder}", pretrained=True).eval()
    source = restored(Config(trained=Trained(checkpoint=str(shipped.checkpoint)))).module.eval()
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(model(images), source(images))
    settings = timm.data.resolve_model_data_config(model)
    assert tuple(settings["mean"]) == (0.5, 0.4, 0.3)
    assert tuple(settings["input_size"]) == (3, 8, 8)
    assert json.loads((shipped.folder / "config.json").read_text())["label_names"] == ["dark", "light"]


def test_it_is_exported_again_as_the_checkpoint_is(shipped, tmp_path, capsys):
    assert main(["export", str(shipped.folder), "-o", str(tmp_path / "again.pt2")]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"Wrote {tmp_path / 'again.pt2'}, with 2 class names"
    assert second.startswith("Largest difference of an output from the model's: ")


def test_the_model_card(shipped):
    _, head, text = (shipped.folder / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head)["license"] == "mit"
    assert yaml.safe_load(head)["library_name"] == "timm"
    assert "| validation top1 | 75.5 |" in text
    assert "| classes | 2: `dark`, `light` |" in text
    assert "hf-hub:USER/dark_or_light" in text
    assert "](functions.png)" in text
    assert (shipped.folder / "functions.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in shipped.folder.iterdir()} == {
        "README.md",
        "config.json",
        "functions.png",
        "model.safetensors",
    }


def test_the_card_of_a_folder_named_by_a_dot(shipped, tmp_path, monkeypatch):
    (tmp_path / "cats").mkdir()
    monkeypatch.chdir(tmp_path / "cats")
    assert main(["export", str(shipped.checkpoint), "--to", "hf", "-o", "."]) == 0
    text = (tmp_path / "cats" / "README.md").read_text()
    assert "# cats\n" in text
    assert "hf-hub:USER/cats" in text


def test_all_files_have_the_usual_permissions(shipped, tmp_path):
    (tmp_path / "usual").touch()
    modes = {path.stat().st_mode for path in shipped.folder.iterdir()}
    assert modes == {(tmp_path / "usual").stat().st_mode}


def test_a_folder_that_is_there_stays(shipped, capsys):
    assert main(["export", str(shipped.checkpoint), "-o", str(shipped.folder), "--to", "hf"]) == 2
    assert "is there already and not empty" in capsys.readouterr().err


class Hub:
    """What stands for the Hub: it keeps what is uploaded, or refuses."""

    error: Exception | None = None
    uploaded: tuple = ()

    def create_repo(self, name, exist_ok):
        if Hub.error:
            raise Hub.error
        return type("Url", (str,), {"repo_id": f"me/{name}"})(f"https://hub/me/{name}")

    def upload_folder(self, repo_id, folder_path, commit_message):
        Hub.uploaded = repo_id, folder_path


def test_push(shipped, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    argv = ["export", str(shipped.checkpoint), "--to", "hf", "--push-to-hub", "it", "-o"]
    assert main([*argv, str(tmp_path / "a")]) == 0
    assert Hub.uploaded == ("me/it", str(tmp_path / "a"))
    assert "Pushed it to https://hub/me/it" in capsys.readouterr().out
    assert "hf-hub:it" in (tmp_path / "a" / "README.md").read_text()


@pytest.mark.parametrize("error", [ConnectionError("no route"), ValueError("bad token")])
def test_a_push_that_fails_is_one_line_and_the_folder_stays(error, shipped, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "error", error)
    argv = ["export", str(shipped.checkpoint), "--to", "hf", "--push-to-hub", "it", "-o", str(tmp_path / "a")]
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"cannot push {tmp_path / 'a'} to it: " in line
    assert (tmp_path / "a" / "config.json").is_file()
