"""The store of labels on disk: what is written is found by id, gaps are filled, and what is damaged is told."""

import numpy as np
import pytest

from gem_jax.transfer.labels import Labels, LabelStore, LabelWriter
from gem_jax.transfer.manifest import EmbeddingConfig, LabelError, Manifest, Pass, read_manifest

WIDTH = 5


def manifest(storage="int4"):
    made = Pass(run="teacher", teacher="t", state=None, step=None, data="d", jax="0", written="now")
    kept = EmbeddingConfig(representation="last", dim=WIDTH, storage=storage)
    return Manifest(tasks=("click", "conversion"), embedding=kept, width=WIDTH, passes={"train": made})


def labels_of(ids):
    rng = np.random.default_rng(int(ids.sum()))
    n = len(ids)
    return Labels(
        example_id=ids,
        user=ids % 7 - 1,
        time_s=ids * 10,
        logits=rng.normal(size=(n, 2)).astype(np.float32),
        embedding=rng.normal(size=(n, WIDTH)).astype(np.float32),
    )


@pytest.mark.parametrize("storage, error", [("float32", 0), ("float16", 2**-11), ("int8", 1 / 254), ("int4", 1 / 14)])
def test_labels_are_found_by_id(tmp_path, storage, error):
    ids = np.random.default_rng(0).permutation(1000)[:90]
    writer = LabelWriter(tmp_path, "train", manifest(storage))
    parts = [labels_of(chunk) for chunk in np.split(ids, [40, 40])]  # the second of a stretch of bad rows
    for start, part in zip((0, 40, 50), parts, strict=True):
        writer.write(start, start + 10 if not len(part) else start + len(part), part)
    done = writer.finish()
    store = LabelStore(tmp_path)
    assert done.examples == 100 and read_manifest(tmp_path) == store.manifest
    for part in parts:
        rows = store.find(part.example_id)
        np.testing.assert_array_equal(store.logits[rows], part.logits)
        np.testing.assert_array_equal(store.user[rows], part.user)
        np.testing.assert_array_equal(store.time_s[rows], part.time_s)
        largest = np.abs(part.embedding).max(axis=1, initial=0, keepdims=True)
        assert (np.abs(store.embeddings(rows) - part.embedding) <= error * largest * (1 + 1e-5)).all()
    missing = store.find(np.setdiff1d(np.arange(1100), ids))
    assert (missing == -1).all()
    assert not store.embeddings(missing).any() and np.isnan(store.logits_of(missing, ("click", "other"))).all()
    assert np.isnan(store.logits_of(store.find(ids), ("other",))).all()
    assert (done.embedding_loss == 0) == (storage == "float32") and done.embedding_loss <= error * np.sqrt(WIDTH)


def test_a_pass_goes_on_at_the_first_gap(tmp_path):
    writer = LabelWriter(tmp_path, "train", manifest())
    assert writer.position == 0
    for start in (0, 10, 30):
        writer.write(start, start + 10, labels_of(np.arange(start, start + 10)))
    again = LabelWriter(tmp_path, "train", manifest())
    assert again.position == 20
    again.forget_from(20)
    again.write(20, 40, labels_of(np.arange(20, 40)))
    assert again.position == 40 and len(LabelStore(tmp_path)) == 40
    with pytest.raises(
        LabelError, match="has labels of examples on both sides of example 25, where the teacher goes on"
    ):
        again.forget_from(25)


def test_what_is_no_store_is_told(tmp_path):
    with pytest.raises(LabelError, match="holds no labels; let a teacher label the data"):
        LabelStore(tmp_path)
    LabelWriter(tmp_path, "train", manifest())
    with pytest.raises(LabelError, match="holds no labels yet"):
        LabelStore(tmp_path)
    file = tmp_path / "manifest.json"
    text = file.read_text()
    file.write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(LabelError, match="was written by another gem_jax"):
        LabelStore(tmp_path)
    file.write_text(text[:50])
    with pytest.raises(LabelError, match="cannot be read"):
        LabelStore(tmp_path)
