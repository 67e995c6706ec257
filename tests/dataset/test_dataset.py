import hashlib
import json
import multiprocessing
import pickle
import shutil

import numpy as np
import pytest
import torch
from example_shards import PX, drawn_example, write_corpus, write_manifest, write_shards

from pipeline.dataset import dataset, shards
from pipeline.dataset.batches import EvaluationBatches, TrainingBatches
from pipeline.dataset.dataset import ExampleDataset, normalised
from pipeline.dataset.shards import read_manifest
from pipeline.dataset.views import augmented, context_view
from pipeline.faces.crops import decode_image, masked_region
from pipeline.records.vocabulary import AUGMENTATIONS, EMOTIONS, UsageError


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "data"
    write_corpus(folder)
    return folder


def opened(folder, *, split="train", **options):
    return ExampleDataset(str(folder), split=split, cache_dir=folder.parent / "cache", **options)


def test_rows_come_in_the_order_of_the_manifest(corpus):
    examples = opened(corpus)
    assert len(examples) == 70
    assert [examples[row].clip_id for row in (0, 15, 16, 69)] == [f"train-{row:04d}" for row in (0, 15, 16, 69)]
    assert examples.labels.tolist() == [row % 7 for row in range(70)]
    with pytest.raises(IndexError):
        examples[70]


def test_sample_is_the_stored_image_normalised(corpus):
    sample = opened(corpus)[3]
    stored = decode_image(drawn_example(3, label=EMOTIONS[3], split="train").face_jpeg)
    expected = (stored / 255 - np.array(dataset.IMAGENET_MEAN)) / np.array(dataset.IMAGENET_STD)
    assert sample.face.shape == (3, PX, PX)
    assert sample.face.dtype == torch.float32
    np.testing.assert_allclose(sample.face.permute(1, 2, 0).numpy(), expected, atol=1e-5)
    assert EMOTIONS[sample.label] == EMOTIONS[3]


def test_masked_face_is_exactly_black_after_jpeg(corpus):
    rows = np.arange(20)
    batch = opened(corpus).read_batch(rows)
    left_by_jpeg = 0
    for row in rows:
        example = drawn_example(int(row), label=EMOTIONS[row % 7], split="train")
        x_min, y_min, x_max, y_max = masked_region(example.box, frame_width=64, frame_height=48, context_px=PX)
        assert batch.context[row, :, y_min:y_max, x_min:x_max].max() == 0
        left_by_jpeg += int(decode_image(example.context_jpeg)[y_min:y_max, x_min:x_max].max())
        assert batch.context[row].max() > 0
    assert left_by_jpeg > 0


def test_other_input_size_resizes_both_images_and_keeps_the_mask(corpus):
    batch = opened(corpus, face_px=16, context_px=48).read_batch(np.array([5]))
    assert batch.face.shape == (1, 3, 16, 16)
    assert batch.context.shape == (1, 3, 48, 48)
    assert (batch.context[0].amax(dim=0) == 0).sum() > 48 * 48 / 20


def test_flip_mirrors_the_pair_together(corpus):
    examples = opened(corpus)
    plain, mirrored = (examples.read_batch(np.array([4]), flips=np.array([flip])) for flip in (False, True))
    assert torch.equal(mirrored.face, plain.face.flip(3))
    assert torch.equal(mirrored.context, plain.context.flip(3))
    assert not torch.equal(mirrored.face, plain.face)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_augmentation_changes_the_face_alone_and_only_by_seed_epoch_and_row(corpus, augmentation):
    examples = opened(corpus, face_px=24)

    def batches(*, augment_face=(augmentation,), seed=0, **share):
        return TrainingBatches(examples, batch_size=14, seed=seed, flip=True, augment_face=augment_face, **share)

    changed, plain = batches()[2], batches(augment_face=())[2]
    assert torch.equal(changed.rows, plain.rows)
    assert torch.equal(changed.context, plain.context)
    assert changed.face.shape == plain.face.shape == (14, 3, 24, 24)
    num_changed = sum(bool((changed.face[i] != plain.face[i]).any()) for i in range(14))
    assert 3 <= num_changed <= 11 if augmentation in ("flip", "erase") else num_changed == 14
    assert torch.equal(changed.face, batches()[2].face)
    halves = [batches(rank=rank, world_size=2)[2].face for rank in range(2)]
    assert torch.equal(changed.face, torch.cat(halves))
    at_another_place = batches().examples.read_batch(
        changed.rows.numpy()[::-1].copy(), augment_face=(augmentation,), seed=(0, 0)
    )
    in_place = batches().examples.read_batch(changed.rows.numpy(), augment_face=(augmentation,), seed=(0, 0))
    assert torch.equal(at_another_place.face.flip(0), in_place.face)
    next_epoch = batches().examples.read_batch(changed.rows.numpy(), augment_face=(augmentation,), seed=(0, 1))
    assert not torch.equal(next_epoch.face, in_place.face)


def test_crop_is_a_part_and_colour_keeps_every_place():
    ramp = np.repeat(np.arange(0, 240, 4, dtype=np.uint8)[:, None], 60, axis=1)[:, :, None].repeat(3, axis=2)
    for seed in range(20):
        crop = augmented(ramp, ("crop",), px=60, random=np.random.default_rng(seed))
        assert crop.shape == (60, 60, 3)
        column = crop[:, 0, 0].astype(int)
        assert (np.diff(column) >= 0).all()
        assert 0.7 * 236 * 0.8 < column[-1] - column[0] <= 236
        coloured = augmented(ramp, ("colour",), px=60, random=np.random.default_rng(seed))
        assert (np.diff(coloured[:, :, 0].astype(int), axis=0) >= 0).all()
        assert (coloured == coloured[:, :1]).all()


@pytest.mark.parametrize("world_size", [2, 4])
def test_global_batch_is_the_same_on_any_number_of_workers(corpus, world_size):
    examples = opened(corpus)
    alone = TrainingBatches(examples, batch_size=16, seed=3, flip=True)
    ranks = [
        TrainingBatches(examples, batch_size=16, seed=3, flip=True, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for step in (0, 1, 3, 4, 9):  # 4 steps an epoch
        rows, flips = alone.rows_and_flips(step)
        shares = [rank.rows_and_flips(step) for rank in ranks]
        assert np.concatenate([share[0] for share in shares]).tolist() == rows.tolist()
        assert np.concatenate([share[1] for share in shares]).tolist() == flips.tolist()


def test_epoch_is_a_permutation_that_differs_from_the_next_and_repeats_by_seed(corpus):
    examples = opened(corpus)
    batches = TrainingBatches(examples, batch_size=10, seed=0, flip=True)
    assert batches.steps_per_epoch == 7
    first, second = (
        np.concatenate([batches.rows_and_flips(step)[0] for step in range(epoch * 7, epoch * 7 + 7)])
        for epoch in range(2)
    )
    assert sorted(first) == sorted(second) == list(range(70))
    assert first.tolist() != second.tolist()
    again = TrainingBatches(opened(corpus), batch_size=10, seed=0, flip=True)
    assert again.rows_and_flips(9)[0].tolist() == batches.rows_and_flips(9)[0].tolist()
    other = TrainingBatches(examples, batch_size=10, seed=1, flip=True)
    assert other.rows_and_flips(0)[0].tolist() != first[:10].tolist()


def test_flips_follow_the_switch(corpus):
    examples = opened(corpus)
    flips = np.concatenate(
        [TrainingBatches(examples, batch_size=70, seed=0, flip=True).rows_and_flips(step)[1] for step in range(20)]
    )
    assert 0.45 < flips.mean() < 0.55
    assert not TrainingBatches(examples, batch_size=70, seed=0, flip=False).rows_and_flips(0)[1].any()


@pytest.mark.parametrize("world_size", [1, 2, 3, 30])
def test_validation_reads_every_row_once_on_any_number_of_workers(corpus, world_size):
    examples = opened(corpus, split="validation")
    rows = [
        row
        for rank in range(world_size)
        for batch in EvaluationBatches(examples, batch_size=5, rank=rank, world_size=world_size)
        for row in batch.rows.tolist()
    ]
    assert sorted(rows) == list(range(23))


@pytest.mark.lengthy
def test_dataset_travels_to_another_process(corpus):
    examples = opened(corpus)
    copy = pickle.loads(pickle.dumps(examples))  # noqa: S301
    assert torch.equal(copy[20].context, examples[20].context)
    batches = TrainingBatches(examples, batch_size=14, seed=0, flip=True)
    loader = torch.utils.data.DataLoader(
        batches, sampler=range(3, 6), batch_size=None, num_workers=1, multiprocessing_context="forkserver"
    )
    for step, batch in zip(range(3, 6), loader, strict=True):
        assert torch.equal(batch.face, batches[step].face)


def _open_and_count(folder, barrier, counts):
    barrier.wait()
    counts.put(int(opened(folder).labels.sum()))


@pytest.mark.lengthy
def test_processes_that_start_together_share_one_whole_copy(corpus):
    context = multiprocessing.get_context("forkserver")
    barrier, counts = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_open_and_count, args=(corpus, barrier, counts)) for _ in range(3)]
    for process in processes:
        process.start()
    assert {counts.get(timeout=60) for _ in processes} == {210}
    for process in processes:
        process.join()
    copies = list((corpus.parent / "cache").rglob("*.arrow"))
    assert len(copies) == 5
    assert not list((corpus.parent / "cache").rglob("*.tmp"))


def test_copy_is_made_once(corpus):
    opened(corpus)
    (corpus / "examples" / "000.parquet").unlink()
    assert len(opened(corpus)) == 70


def test_decoded_copies_give_the_same_batches_and_nothing_is_decoded_again(corpus, monkeypatch):
    rows, flips = np.random.default_rng(1).permutation(70), np.arange(70) % 3 == 0
    changes = {"flips": flips, "augment_face": ("crop", "colour")}
    for px in (PX, PX // 2):
        sizes = {"face_px": px, "context_px": px}
        expected = opened(corpus, **sizes).read_batch(rows, **changes)
        cached = pickle.loads(pickle.dumps(opened(corpus, **sizes, cache_decoded=True)))  # noqa: S301
        with monkeypatch.context() as patch:
            patch.setattr(dataset, "decode_image", lambda _: pytest.fail("decoded again"))
            found = cached.read_batch(rows, **changes)
        for name in ("face", "context", "labels"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_decoded_copies_that_do_not_fit_are_refused_in_words(corpus, monkeypatch):
    opened(corpus)
    usage = shutil.disk_usage(corpus)
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UsageError, match=r"cache .*0\.0 GB free, .* needed for the decoded images; .* --cache-dir"):
        opened(corpus, cache_decoded=True)
    assert len(opened(corpus)) == 70


def test_manifest_is_known_by_the_sha256_of_its_bytes(corpus):
    manifest = read_manifest(str(corpus))
    assert manifest.sha256 == hashlib.sha256((corpus / "manifest.json").read_bytes()).hexdigest()
    assert manifest.config["face_px"] == PX


def test_only_shards_of_the_manifest_are_read(corpus):
    (corpus / "examples" / "orphan.parquet").write_bytes(b"left by a killed attempt")
    assert len(opened(corpus)) == 70


def test_missing_manifest_names_the_cure(tmp_path):
    with pytest.raises(UsageError, match=r"manifest.json is not there; point at the output of jobs/preprocess.py"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kind": "predictions"}, "'predictions'"),
        ({"schema_version": 99}, "version 99"),
        ({"config": {"face_px": "big", "context_px": 32}}, "face_px 'big'"),
        ({"shards": None}, "damaged"),
    ],
)
def test_foreign_manifest_is_refused(corpus, change, told):
    write_manifest(corpus, json.loads((corpus / "manifest.json").read_text()) | change)
    with pytest.raises(UsageError, match=told):
        opened(corpus)


def test_manifest_that_is_not_json_is_refused(corpus):
    (corpus / "manifest.json").write_bytes(b"\x80\x04not json")
    with pytest.raises(UsageError, match="damaged"):
        opened(corpus)


def test_damaged_shard_is_refused(corpus):
    shard = corpus / "examples" / "001.parquet"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UsageError, match=r"shard examples/001.parquet is damaged: its sha256"):
        opened(corpus)


def test_missing_shard_is_refused(corpus):
    (corpus / "examples" / "001.parquet").unlink()
    with pytest.raises(UsageError, match=r"shard examples/001.parquet is missing"):
        opened(corpus)


def test_empty_split_tells_what_is_there(corpus):
    with pytest.raises(UsageError, match=r"split test holds no examples .*train 70, validation 23, test 0"):
        opened(corpus, split="test")
    with pytest.raises(UsageError, match="split 'dev' is not one of train"):
        opened(corpus, split="dev")


def test_unlabelled_rows_are_refused(tmp_path):
    examples = [drawn_example(i, label=None if i == 2 else "Sad", split="train") for i in range(4)]
    write_shards(tmp_path / "data", [examples])
    with pytest.raises(UsageError, match="holds 1 unlabelled examples of split train"):
        opened(tmp_path / "data")


def test_missing_classes_are_named(tmp_path):
    write_shards(tmp_path / "data", [[drawn_example(i, label="Sad", split="train") for i in range(4)]])
    with pytest.raises(UsageError, match="no example of Anger, Disgust, Fear, Happy, Neutral, Surprise among 4"):
        opened(tmp_path / "data").require_every_class()


def test_batch_that_cannot_be_made_is_refused(corpus):
    examples = opened(corpus)
    with pytest.raises(UsageError, match="holds 70 examples, too few for one batch of 128"):
        TrainingBatches(examples, batch_size=128, seed=0, flip=True)
    with pytest.raises(UsageError, match="batch size 16 can't be shared by 3 workers"):
        TrainingBatches(examples, batch_size=16, seed=0, flip=True, rank=0, world_size=3)


def test_normalised_grey_is_near_zero():
    grey = torch.tensor([124, 116, 104], dtype=torch.uint8).view(1, 3, 1, 1)
    assert normalised(grey).abs().max() < 0.02


def test_a_context_is_cropped_as_the_public_network_reads_it_and_anywhere_in_training():
    # Left to right a ramp of 0 to 255, top to bottom none: a crop's first and last columns tell where it lies.
    context = np.tile(np.linspace(0, 255, 256, dtype=np.uint8)[None, :, None], (256, 1, 3))
    whole = context_view(context, px=112, crop="none", aspect=1.78)
    assert (whole[0, 0, 0], whole[0, -1, 0]) == (0, 255) or whole[0, -1, 0] > 250
    middle = context_view(context, px=112, crop="public", aspect=1.78)
    margin = 255 * (1 - 112 / 171) / 2
    assert middle.shape == (112, 112, 3)
    assert middle[0, 0, 0] == pytest.approx(margin, abs=3)
    assert middle[0, -1, 0] == pytest.approx(255 - margin, abs=3)
    # In its own proportions, 16:9 here, a square is a smaller share of the width.
    proportional = context_view(context, px=112, crop="aspect", aspect=16 / 9)
    span = int(proportional[0, -1, 0]) - int(proportional[0, 0, 0])
    assert span == pytest.approx(255 * 112 / (128 * 16 / 9), abs=4)
    tall = context_view(context, px=112, crop="aspect", aspect=9 / 16)
    assert int(tall[0, -1, 0]) - int(tall[0, 0, 0]) == pytest.approx(255 * 112 / 128, abs=4)
    starts = {
        int(context_view(context, px=112, crop="public", aspect=1.78, random=np.random.default_rng(seed))[0, 0, 0])
        for seed in range(20)
    }
    assert len(starts) > 10
    assert min(starts) >= 0
    assert max(starts) <= 2 * margin + 3
    with pytest.raises(UsageError, match="context crop 'left' is not known"):
        context_view(context, px=112, crop="left", aspect=1.0)


def test_a_crop_of_the_context_follows_from_seed_and_row_and_evaluation_reads_the_middle(tmp_path):
    write_corpus(tmp_path / "data", train=14, validation=7)
    examples = ExampleDataset(
        str(tmp_path / "data"), split="train", context_px=16, context_crop="public", cache_dir=tmp_path / "cache"
    )
    rows = np.arange(14)
    one, again, other = (examples.read_batch(rows, crop_at_random=True, seed=(seed,)).context for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    middle = examples.read_batch(rows).context
    assert torch.equal(middle, examples.read_batch(rows, seed=(5,)).context)
    assert not torch.equal(middle, one)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_each_change_of_a_face_follows_from_its_generator(name):
    face = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    seen = [augmented(face, (name,), px=32, random=np.random.default_rng(seed)) for seed in range(8)]
    assert all(each.shape == (32, 32, 3) and each.dtype == np.uint8 for each in seen)
    np.testing.assert_array_equal(seen[0], augmented(face, (name,), px=32, random=np.random.default_rng(0)))
    assert any((each != face).any() for each in seen)
    if name == "flip":
        assert {(each == face).all() or (each == face[:, ::-1]).all() for each in seen} == {True}
    if name == "erase":
        changed = [(each != face).any(axis=2).mean() for each in seen if (each != face).any()]
        assert min(changed) > 0.01
        assert max(changed) < 0.25
    np.testing.assert_array_equal(face, np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
