"""``lamjax linear``: what it prints, and that mistakes are one sentence."""

import json

import pytest

from lamjax.cli import main

WORLD = ["--d-o", "32", "--d-a", "4", "--d-b", "4", "--orthogonal", "--json"]


@pytest.fixture
def call(capsys):
    """Runs a command that must succeed; returns its JSON."""

    def run(*argv):
        assert main(["linear", *argv]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def fails(capsys):
    """Runs a command that must fail; returns its sentence."""

    def run(*argv):
        assert main(["linear", *argv]) == 2
        out, err = capsys.readouterr()
        assert out == "" and len(err.splitlines()) == 1
        return err.strip().removeprefix("lamjax: ")

    return run


def test_optimum_prints_the_closed_form(call):
    found = call(
        "optimum",
        *WORLD,
        *["--d-z", "4", "--s-iid", "0", "--s-exo", "0.5", "--chi", "0", "--rho", "0", "--kappa", "0.1"],
    )
    assert found["loss"] == pytest.approx(1)
    assert found["llo"] == pytest.approx(2)
    assert (found["nmse_q"], found["nmse_eps"], found["nmse_o"]) == pytest.approx((0, 1, 1), abs=1e-9)
    assert found["eigenvalues"][:9] == pytest.approx([1] * 4 + [0.25] * 4 + [0], abs=1e-9)


def test_each_option_arrives(call):
    def nmse_q(*words):
        return call("optimum", *WORLD, "--d-z", "4", *" ".join(words).split())["nmse_q"]

    assert nmse_q("--s-iid 1") == pytest.approx(0.5)
    assert nmse_q("--s-iid 1 --probe noisy-clean") == pytest.approx(0.25)
    assert nmse_q("--s-exo 2") == pytest.approx(1)
    assert nmse_q("--s-exo 2 --action-weight 3.05") == pytest.approx(0, abs=1e-9)
    assert nmse_q("--s-exo 2 --clean 0.51") == pytest.approx(0, abs=1e-9)
    assert nmse_q("--s-exo 0.5 --rho 0.5") == pytest.approx(0.0146373, abs=1e-6)
    assert nmse_q("--s-exo 0.5 --chi 0.6 --kappa 0.5") == pytest.approx(1)
    assert nmse_q("--s-exo 0.5 --chi 0.6 --kappa 0.7") == pytest.approx(0, abs=1e-9)
    assert nmse_q("--s-iid 1 --q-norm coordinate") == pytest.approx(1 / 9)
    change = call("optimum", *WORLD, *["--d-z", "2", "--chi", "0.5", "--latent", "change", "--random-policy"])
    assert change["nmse_a"] == pytest.approx(0.625, abs=2e-6)


def test_seeds_are_averaged(call):
    words = ["optimum", "--d-o", "16", "--d-a", "3", "--d-b", "3", "--s-exo", "0.8", "--d-z", "3", "--json"]
    single = [call(*words, "--seed", str(seed))["nmse_q"] for seed in (0, 1, 2)]
    assert call(*words, "--seeds", "3")["nmse_q"] == pytest.approx(sum(single) / 3)
    assert max(single) - min(single) > 1e-3


def test_train_comes_close_to_the_optimum(call):
    words = ["--d-o", "8", "--d-a", "2", "--d-b", "2", "--d-z", "2", "--s-exo", "0.5", "--kappa", "0.3", "--json"]
    found, best = call("train", *words, "--steps", "1024"), call("optimum", *words)
    assert found["optimal_loss"] == best["loss"] < found["loss"]
    assert found["converged"] and found["excess"] <= 2e-3 and found["angle"] < 5
    assert found["llo"] == pytest.approx(best["llo"], abs=0.05)


def test_it_prints_for_people_too(capsys):
    assert main(["linear", "optimum", "--s-exo", "0.5"]) == 0
    assert "llo" in capsys.readouterr().out
    assert main(["linear", "optimum", *WORLD, "--s-exo", "1"]) == 0
    assert "tie" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["optimum"], ["train"]])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["linear", *command, "--help"])
    assert exit.value.code == 0
    assert "lamjax linear" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "start"),
    [
        ("", "linear needs a command"),
        ("solve", "linear has no command 'solve': choose one of optimum, train."),
        ("optimum --d-z 33", "d_z must lie in [1, d_o = 32], not 33."),
        ("optimum --s-iid -1", "s_iid must be finite and not negative, not -1.0."),
        ("optimum --s-exo nan", "s_exo must be finite and not negative, not nan."),
        ("optimum --chi 1", "moments: the innovation is empty"),
        ("optimum --seeds 0", "seeds must be at least 1"),
        ("optimum --seed -1", "seed must be at least 0"),
        ("optimum --chi 0.5 --kappa 0.1 --action-weight 1", "action_weight: no closed form"),
        ("train --steps 0", "steps must be at least 1"),
        ("train --label-fraction 2", "label_fraction must lie in [0, 1]"),
    ],
)
def test_mistakes(fails, words, start):
    assert fails(*words.split()).startswith(start)
