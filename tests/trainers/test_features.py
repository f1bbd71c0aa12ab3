from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from hasten.trainers.datasets import data
from hasten.trainers.datasets.data import Dataset
from hasten.trainers.errors import ConfigError, Fault
from hasten.trainers.metrics import classifier, features, inception
from hasten.trainers.specs import Classifier, Inception, Pixels
from hasten.trainers.store import Folder
from hasten.trainers.worker import Worker

CPU = torch.device("cpu")
CLASSIFIER = Classifier(kind="classifier")


def stored(folder: Path, pixels: np.ndarray, labels: np.ndarray) -> Dataset:
    data.write(Folder(str(folder)), name="set", source="test", pixels=pixels, labels=labels)
    return data.read(str(folder), data.read_manifest(str(folder)).digest)


def bars(count: int = 400, size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Noisy pictures of a horizontal or of a vertical bar."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 100, size=(count, 1, size, size), dtype=np.uint8)
    labels, place = random.integers(0, 2, size=count), random.integers(0, size, size=count)
    for image, label, where in zip(pixels, labels, place, strict=True):
        if label:
            image[0, where] += 150
        else:
            image[0, :, where] += 150
    return pixels, labels


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return stored(tmp_path_factory.mktemp("bars"), *bars())


@pytest.fixture(scope="module")
def trained(dataset: Dataset) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "_IMAGES", 5000)
        return classifier.train(dataset, CPU)


@pytest.fixture
def copied(tmp_path: Path, trained: bytes, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """The data set in a folder of its own, without a classifier, which takes no time to train."""
    monkeypatch.setattr(classifier, "train", lambda *_: trained)
    return stored(tmp_path, *bars())


def files(dataset: Dataset) -> list[str]:
    return [name for name in dataset.folder.names() if name.startswith("classifier")]


def test_pixels_are_scaled_bytes_or_numbers_as_they_are() -> None:
    images = np.arange(64, dtype=np.uint8).reshape(2, 2, 4, 4)
    found = features.extractor(Pixels(kind="pixels"), dataset=None, worker=Worker())
    np.testing.assert_array_equal(found(images), images.reshape(2, 32) / 255.0)
    latents = np.float32(3.0) * images
    np.testing.assert_array_equal(found(latents.astype(np.float32)), latents.reshape(2, 32))
    np.testing.assert_array_equal(features.to_bytes(features.to_model(images), images=True), images)


def test_training_the_classifier_is_a_function_of_the_data_set(
    dataset: Dataset, trained: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifier, "_IMAGES", 5000)
    torch.manual_seed(123)  # nothing of the caller's goes in, and nothing is left behind
    before = torch.random.get_rng_state()
    assert classifier.train(dataset, CPU) == trained
    assert torch.equal(torch.random.get_rng_state(), before)


def test_classifier_is_kept_with_the_data_and_found_again(copied: Dataset, trained: bytes) -> None:
    first = classifier.find(copied, Worker())
    assert first.accuracy > 0.9
    name = f"classifier-{copied.manifest.digest[:12]}.safetensors"
    assert files(copied) == [name]
    assert copied.folder.read(name) == trained
    assert first.digest == hashlib.sha256(trained).hexdigest()
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(classifier, "train")
        assert classifier.find(copied, Worker()).digest == first.digest


def test_classifier_features_tell_classes_apart_better_than_pixels(copied: Dataset) -> None:
    pixels, labels = bars()
    learned = features.extractor(CLASSIFIER, dataset=copied, worker=Worker())

    def separation(values: np.ndarray) -> float:
        """Distance of the classes' means over their spread."""
        first, second = values[labels == 0], values[labels == 1]
        spread = np.sqrt(first.var(axis=0).sum() + second.var(axis=0).sum())
        return float(np.linalg.norm(first.mean(axis=0) - second.mean(axis=0)) / spread)

    found = learned(pixels)
    assert found.shape == (400, classifier.FEATURES)
    assert separation(found) > 3.0 * separation(pixels.reshape(400, -1).astype(np.float64))
    np.testing.assert_allclose(learned(pixels[:3]), found[:3], rtol=1e-4, atol=1e-5)
    record = learned.record()
    assert record["kind"] == "classifier"
    assert set(record) == {"kind", "digest", "accuracy"}


def test_other_ranks_train_nothing(copied: Dataset) -> None:
    class Second(Worker):
        """A second rank whose first one does its part while this one waits."""

        def agree(self, value: str | None) -> str | None:
            assert files(copied) == []
            classifier.find(copied, Worker())
            return value

    found = classifier.find(copied, Second(rank=1, world_size=2))
    assert found.accuracy > 0.9


def test_an_older_recipes_classifier_is_trained_again(
    copied: Dataset, trained: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier.find(copied, Worker())
    monkeypatch.setattr(classifier, "_RECIPE", "2")
    newer = safetensors.torch.save(
        safetensors.torch.load(trained), metadata={"hasten": '{"recipe": "2", "accuracy": "0.5"}'}
    )
    monkeypatch.setattr(classifier, "train", lambda *_: newer)
    assert classifier.find(copied, Worker()).accuracy == 0.5


@pytest.mark.parametrize("damage", ["short", "empty", "noise"])
def test_a_damaged_classifier_is_named(damage: str, copied: Dataset, trained: bytes) -> None:
    classifier.find(copied, Worker())
    content = {"short": trained[:-100], "empty": b"", "noise": b"<html>" * 99}[damage]
    copied.folder.write(files(copied)[0], content)
    with pytest.raises(Fault, match="damaged") as caught:
        classifier.find(copied, Worker())
    assert "Delete" in caught.value.remedy


def test_no_classifier_without_labels(tmp_path: Path) -> None:
    pixels, labels = bars(40)
    dataset = stored(tmp_path, pixels, np.full_like(labels, -1))
    with pytest.raises(ConfigError, match="labels"):
        classifier.find(dataset, Worker())
    with pytest.raises(ConfigError, match="labels"):
        features.check(CLASSIFIER, images=True, channels=1, classes=0)


@pytest.mark.parametrize(("channels", "size"), [(3, 32), (4, 16), (1, 5)])
def test_classifier_fits_any_images(channels: int, size: int) -> None:
    network = classifier.SmallCnn(channels=channels, size=size, classes=7)
    assert network(torch.zeros(2, channels, size, size)).shape == (2, 7)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the published file's form."""
    torch.manual_seed(0)
    network = inception.Inception()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    state = network.state_dict() | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(state, path)
    return path


def rgb(count: int = 2, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=(count, 3, size, size), dtype=np.uint8)


@pytest.fixture(scope="module")
def found(weights: Path) -> features.Extractor:
    spec = Inception(kind="inception", weights=str(weights))
    return features.extractor(spec, dataset=None, worker=Worker())


def test_inception_reads_the_published_form_and_names_it_by_its_content(
    weights: Path, found: features.Extractor
) -> None:
    values = found(rgb())
    assert values.shape == (2, 2048)
    assert np.isfinite(values).all()
    assert values.std() > 0.0
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert found.record() == {"kind": "inception", "digest": digest}


def test_inception_of_grey_images_sees_them_as_rgb(found: features.Extractor) -> None:
    grey = rgb(1, 8)[:, :1]
    np.testing.assert_array_equal(found(grey), found(grey.repeat(3, axis=1)))
    assert found(grey[:0]).shape == (0, 2048)


def test_inception_reads_safetensors_too(weights: Path, found: features.Extractor, tmp_path: Path) -> None:
    state = torch.load(weights, weights_only=True)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors.torch.save(state))
    np.testing.assert_array_equal(inception.load(str(path), CPU)(rgb(1)), found(rgb(1)))


def test_inception_has_the_published_parameters() -> None:
    """torchvision's Inception v3 has 21,785,568 in this part: 94 convolutions, each with a normalisation."""
    network = inception.Inception()
    assert sum(parameter.numel() for parameter in network.parameters()) == 21_785_568
    assert sum(isinstance(module, torch.nn.Conv2d) for module in network.modules()) == 94


def test_images_are_enlarged_as_tensorflow_1_does() -> None:
    """Without half-pixel centres: output i lies at i * size / 299, and nothing lies beyond the last pixel."""
    ramp = torch.arange(8.0).reshape(1, 1, 1, 8).expand(1, 1, 8, 8)
    expected = np.minimum(np.arange(299) * 8 / 299, 7.0)
    found = inception._enlarged(ramp)
    assert found.shape == (1, 1, 299, 299)
    np.testing.assert_allclose(found[0, 0, 17].numpy(), expected, atol=1e-5)
    assert torch.equal(inception._enlarged(torch.eye(299)[None, None])[0, 0], torch.eye(299))


class Trap:
    """What a malicious file would do to whoever unpickles it."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("trapped"),)  # type: ignore[return-value]


@pytest.mark.parametrize("case", ["missing", "noise", "other", "malicious"])
def test_what_is_not_inceptions_weights_is_refused_and_never_executed(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    match case:
        case "noise":
            path.write_bytes(b"<!DOCTYPE html>" * 100)
        case "other":
            torch.save({"layer.weight": torch.zeros(3)}, path)
        case "malicious":
            sink = io.BytesIO()
            torch.save({"Conv2d_1a_3x3.conv.weight": Trap()}, sink)
            path.write_bytes(sink.getvalue())
    with pytest.raises(ConfigError) as caught:
        inception.load(str(path), CPU)
    assert caught.value.subject == "eval.samples.features.weights"
    assert "pt_inception-2015-12-05" in caught.value.remedy
    assert not (tmp_path / "trapped").exists()


def test_inception_is_for_pictures() -> None:
    spec = Inception(kind="inception", weights="x")
    features.check(spec, images=True, channels=3, classes=0)
    for images, channels in ((False, 3), (True, 4)):
        with pytest.raises(ConfigError, match="RGB"):
            features.check(spec, images=images, channels=channels, classes=10)
