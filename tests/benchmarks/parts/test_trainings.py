"""A training through the command line at toy size, and what is sampled meanwhile."""

import sys

import pytest

from benchmarks.parts import trainings

TOY = ("--model", "kat_tiny_patch16_224", "--img-size", "8", "--model-kwargs", "patch_size=4", "embed_dim=16")
FLAGS = (*TOY, "depth=1", "num_heads=2", "--fake-data", "--device", "cpu", "-b", "2", "--epochs", "3")


def test_a_training_gives_its_epochs_and_samples_of_memory():
    flags = (*FLAGS, "--train-num-samples", "8", "--val-num-samples", "2")
    epochs, samples = trainings.train(flags, trainings.launch(1), every_s=0.5)
    assert [epoch["epoch"] for epoch in epochs] == [0, 1, 2]
    assert trainings.medians(epochs, ["images_per_second"]) == {"images_per_second": epochs[1]["images_per_second"]}
    assert samples
    assert all(sample.host_mib > 1 for sample in samples)
    ended = [sample.epochs for sample in samples]
    assert ended == sorted(ended)
    assert ended[0] == 0
    assert ended[-1] <= 3


def test_a_failed_training_shows_its_last_lines():
    with pytest.raises(SystemExit, match=r"failed: .*--epochs"):
        trainings.train((*FLAGS, "--epochs", "none"), trainings.launch(1))


def test_one_process_for_each_gpu():
    assert trainings.launch(1) == [sys.executable, "-m"]
    assert trainings.launch(2)[-3:] == ["--nproc-per-node", "2", "-m"]


def test_what_a_command_prints():
    assert trainings.output_of([sys.executable, "-c", "print(42)"]) == "42\n"
    with pytest.raises(SystemExit, match="no such thing"):
        trainings.output_of([sys.executable, "-c", "raise SystemExit('no such thing')"])


def test_memory_of_the_visible_gpu_alone(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\ncase "$*" in *--id=1*) echo 200 ;; *) echo 900; echo 200 ;; esac\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert trainings._gpu_mib() == 900
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert trainings._gpu_mib() == 200
