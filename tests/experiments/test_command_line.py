"""The command line as a user meets it: lists, refusals that help, and exit codes."""

import pytest

from experiments import registry
from experiments.__main__ import EXIT_BAD_INPUT, EXIT_INTERRUPTED, main


def test_list_names_every_experiment_with_its_claim(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for name in registry.EXPERIMENTS:
        assert name in out
        assert " ".join(registry.load(name).CLAIM.split()[:4]) in out


def test_help_without_arguments(capsys):
    assert main([]) == 0
    assert "list | run NAME" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rum", "flatness"], "unknown command 'rum'. Did you mean run?"),
        (["run", "flatnes"], "unknown experiment 'flatnes'. Did you mean flatness?"),
        (["run", "flatness", "--preset", "smok"], "unknown preset 'smok'. Did you mean smoke?"),
        (["run"], "run needs the name of an experiment: .*flatness"),
    ],
)
def test_unknown_words_suggest_the_nearest(arguments, message):
    with pytest.raises(SystemExit, match=message.replace("?", r"\?")):
        main(arguments)


def test_an_unknown_field_suggests_the_nearest(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["run", "flatness", "--num-sedes", "3"])
    assert stopped.value.code != 0
    assert "--num-seeds" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "fashion_mnist"], ["fashion_mnist", "train-images-idx3-ubyte", "looked in"]),
        (["--num-train", "5000"], ["hold_out: num_samples must"]),
        (["--num-gradients", "3"], ["make_method: num_gradients must allow an update per evaluation"]),
        (["--reference-sigma", "0.2"], ["flatness: reference_sigma must be one of the sigmas (0.1, 0.3); got 0.2."]),
        (["--label-noise", "1.5"], ["with_label_noise: fraction must"]),
    ],
)
def test_bad_input_is_one_clear_sentence(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JFLAT_DATA", str(tmp_path / "nothing"))
    code = main(["run", "flatness", "--preset", "smoke", "--output", str(tmp_path), *arguments])
    assert code == EXIT_BAD_INPUT
    out = capsys.readouterr().out
    for word in words:
        assert word in out
    assert "Traceback" not in out


def test_interrupted_run_says_how_to_resume(tmp_path, capsys, monkeypatch):
    module = registry.load("flatness")

    def interrupted(config, directory, progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run", interrupted)
    arguments = ["run", "flatness", "--preset", "smoke", "--output", str(tmp_path / "my runs")]
    assert main(arguments) == EXIT_INTERRUPTED
    out = capsys.readouterr().out
    assert f"python -m experiments run flatness --preset smoke --output '{tmp_path}/my runs'" in out


@pytest.fixture
def started(monkeypatch):
    """What processes were asked for; this one stays alone."""
    asked = []
    monkeypatch.setattr("experiments.__main__.start_processes", lambda *args, **options: asked.append((args, options)))
    return asked


def test_distributed_passes_on_who_is_who(started, tmp_path, monkeypatch):
    monkeypatch.setattr(registry.load("flatness"), "run", lambda config, directory, progress: None)
    monkeypatch.setattr(registry.load("flatness"), "report", lambda directory: registry.Summary("", tmp_path, []))
    who = ["--coordinator", "127.0.0.1:9", "--num-processes", "2", "--process-id", "1", "--heartbeat-seconds", "7"]
    assert main(["run", "flatness", "--preset", "smoke", "--output", str(tmp_path), "--distributed", *who]) == 0
    assert started == [(("127.0.0.1:9", 2, 1), {"heartbeat_seconds": 7, "shutdown_seconds": 7})]


def test_distributed_is_refused_where_it_is_not_known(started, tmp_path, capsys):
    arguments = ["run", "landscape-surfaces", "--preset", "smoke", "--output", str(tmp_path), "--distributed"]
    assert main(arguments) == EXIT_BAD_INPUT
    assert "run: --distributed is known to flatness alone; got landscape-surfaces." in capsys.readouterr().out
    assert started == []


def test_distributed_that_does_not_know_who_is_who_is_one_clear_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JFLAT_NUM_PROCESSES", "2")
    monkeypatch.delenv("JFLAT_COORDINATOR", raising=False)
    assert main(["run", "flatness", "--preset", "smoke", "--output", str(tmp_path), "--distributed"]) == EXIT_BAD_INPUT
    out = capsys.readouterr().out
    assert "must be given all three, or none" in out
    assert "Traceback" not in out


def test_report_of_an_empty_folder(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == EXIT_BAD_INPUT
    assert "no finished run" in capsys.readouterr().out
