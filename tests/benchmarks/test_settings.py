import jax

from benchmarks.settings import ROWS, Settings


def test_convolutions_are_not_fused_on_a_cpu():
    assert [Settings(size=size).fused for size in ("cpu", "paper")] == [1, 1]


def test_an_accelerator_fuses_and_is_measured_at_several_batches(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    settings = Settings(size="paper")
    assert settings.fused == 25 and settings.repeats == 30
    assert [sized.batch_size for sized in settings.scaled("stage1")] == [128, 512, 1024]
    assert [sized.batch_size for sized in settings.scaled("stage3")] == [128]


def test_a_batch_that_is_asked_for_is_measured():
    settings = Settings(batches=(16, 48))
    assert [sized.batch_size for sized in settings.scaled("stage2")] == [16, 48]
    assert all([sized.batch_size for sized in settings.scaled(row)] == [16] for row in ROWS[2:])


def test_a_cpu_is_measured_at_one():
    assert [s.batch_size for size in ("cpu", "paper") for s in Settings(size=size).scaled("stage1")] == [64, 32]
