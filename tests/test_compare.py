"""The regression check on runs made here: planted changes are the oracle, and the stored runs against themselves."""

import json
import pathlib

import pytest

from benchmarks import compare
from benchmarks.__main__ import BENCHMARKS, main

RESULTS = pathlib.Path(__file__).parents[1] / "benchmarks" / "results"

ROW = {
    "benchmark": "messages",
    "instances": 20,
    "inputs": 1001,
    "ms": 10.0,
    "ms_quartiles": [9.8, 10.2],
    "over_floor": 4.0,
    "vmap_gain": 1.25,
    "error": 1e-7,
    "load": 0.5,
    "jax": "0.10.2",
    "device": "cpu cpu",
    "cores": 2,
    "date": "2026-11-21",
}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def verdicts(tmp_path, old, new, **keywords):
    files = (write(tmp_path / "old.jsonl", *old), write(tmp_path / "new.jsonl", *new))
    found = list(compare.changes(*map(compare.read, files), **keywords))
    code = compare.main([str(path) for path in files])
    return {change.number or change.record: change.verdict for change in found}, code


def test_the_same_run_on_another_day_is_the_same(tmp_path):
    later = ROW | {"date": "2027-01-01", "load": 1.0, "jax": "0.12.0", "error": 5e-7}
    found, code = verdicts(tmp_path, [ROW], [later])
    assert found == {"ms": "same", "over_floor": "same", "vmap_gain": "same"}
    assert code == 0


@pytest.mark.parametrize(("number", "worse", "better"), [("ms", 12, 8), ("over_floor", 5, 3), ("vmap_gain", 1, 1.6)])
def test_a_planted_regression_is_found_and_its_inverse_is_not_one(tmp_path, number, worse, better):
    def with_value(value):
        row = ROW | {number: value}
        scale = value / ROW["ms"] if number == "ms" else 1
        return row | {"ms_quartiles": [scale * quartile for quartile in ROW["ms_quartiles"]]}

    found, code = verdicts(tmp_path, [ROW], [with_value(worse)])
    assert (found.pop(number), set(found.values()), code) == ("slower", {"same"}, 1)
    found, code = verdicts(tmp_path, [ROW], [with_value(better)])
    assert (found.pop(number), set(found.values()), code) == ("faster", {"same"}, 0)


def test_a_change_within_the_quartiles_or_the_tolerance_is_none(tmp_path):
    found, code = verdicts(tmp_path, [ROW], [ROW | {"ms": 13.0, "ms_quartiles": [10.0, 14.0]}])
    assert (found["ms"], code) == ("noise", 0)
    slightly = ROW | {"over_floor": 4.5}
    assert verdicts(tmp_path, [ROW], [slightly])[0]["over_floor"] == "same"
    assert verdicts(tmp_path, [ROW], [slightly], tolerance=0.01)[0]["over_floor"] == "slower"


def test_quartiles_of_a_number_itself_are_preferred(tmp_path):
    old, new = (ROW | {"over_floor": x, "over_floor_quartiles": [x - 2, x + 2]} for x in (4.0, 6.0))
    assert verdicts(tmp_path, [old], [new])[0]["over_floor"] == "noise"


def test_times_of_another_machine_are_marked_and_ratios_still_judged(tmp_path):
    other = ROW | {"cores": 64, "ms": 100.0, "ms_quartiles": [99.0, 101.0], "over_floor": 8.0}
    found, code = verdicts(tmp_path, [ROW], [other])
    assert (found["ms"], found["over_floor"], code) == ("other machine", "slower", 1)


def test_a_peer_that_becomes_slower_is_no_regression(tmp_path):
    old = ROW | {"library": "PyHessian", "gradients_per_product": 1.0, "jflat_over_this": 0.7}
    found, code = verdicts(tmp_path, [old], [old | {"gradients_per_product": 2.0, "jflat_over_this": 0.3}])
    assert (found["gradients_per_product"], found["jflat_over_this"], code) == ("peer", "faster", 0)
    assert verdicts(tmp_path, [old], [old | {"jflat_over_this": 1.1}])[1] == 1


def test_wall_time_on_a_busy_machine_is_not_judged_and_processor_time_is(tmp_path):
    old = ROW | {"cpu_over_floor": 4.0, "wall_ms": 10.0}
    new = old | {"load": 9.0, "ms": 30.0, "ms_quartiles": [29.0, 31.0], "over_floor": 9.0, "cpu_over_floor": 5.0}
    found, code = verdicts(tmp_path, [old], [new])
    assert (found["ms"], found["over_floor"], found["cpu_over_floor"], code) == ("busy", "busy", "slower", 1)
    pinned = [row | {"clock": "processor"} for row in (old, new)]
    found, _ = verdicts(tmp_path, pinned[:1], pinned[1:])
    assert (found["ms"], found["wall_ms"]) == ("slower", "busy")


def test_records_of_one_run_only_are_named(tmp_path):
    small = ROW | {"instances": 1}
    found, code = verdicts(tmp_path, [ROW, small], [ROW, ROW | {"instances": 3}])
    assert found["messages, inputs 1001, instances 1"] == "missing"
    assert found["messages, inputs 1001, instances 3"] == "added"
    assert code == 0


def test_runs_with_nothing_in_common_are_refused(tmp_path, capsys):
    assert verdicts(tmp_path, [ROW], [ROW | {"benchmark": "width"}])[1] == 2
    assert "no record" in capsys.readouterr().out


@pytest.mark.parametrize("value", [float("nan"), None])
def test_a_number_that_is_none_any_more_fails(tmp_path, value):
    found, code = verdicts(tmp_path, [ROW], [ROW | {"over_floor": value}])
    assert (found["over_floor"], code) == ("not finite", 1)


def test_the_last_of_equal_records_counts(tmp_path):
    found, _ = verdicts(tmp_path, [ROW | {"over_floor": 1.0}, ROW], [ROW])
    assert found["over_floor"] == "same"


def test_from_the_command_line(tmp_path, capsys):
    old = write(tmp_path / "old.jsonl", ROW)
    new = write(tmp_path / "new.jsonl", ROW | {"over_floor": 9.0})
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(old), str(new)])
    assert ended.value.code == 1
    assert "| over_floor | 4 | 9 | 2.25 | slower |" in capsys.readouterr().out


def test_every_stored_run_is_listed_and_parses_and_is_of_a_benchmark():
    listed = (RESULTS / "README.md").read_text()
    for path in sorted(RESULTS.iterdir()):
        if path.name == "README.md":
            continue
        assert f"`{path.name}`" in listed, f"{path.name} is not in the table of benchmarks/results/README.md"
        if path.suffix == ".jsonl":
            rows = compare.read(path)
            assert rows
            assert {row["benchmark"] for row in rows.values()} <= set(BENCHMARKS)
            assert {change.verdict for change in compare.changes(rows, rows)} <= {"same", "busy", "peer"}


def test_every_listed_run_is_stored_and_its_commands_exist():
    table = [line for line in (RESULTS / "README.md").read_text().splitlines() if line.startswith("| `")]
    for line in table:
        files, commands, _ = (cell.strip() for cell in line.strip("|").split("|"))
        assert all((RESULTS / name).is_file() for name in files.split("`")[1::2])
        assert {name.split()[0] for name in commands.split("`")[1::2]} <= {*BENCHMARKS, "ratios"}


def test_the_stored_table_of_ratios_is_that_of_the_stored_runs(capsys):
    main(["ratios", *(str(RESULTS / name) for name in ("curvature_cpu_1_core.jsonl", "peers_cpu_2_cores.jsonl"))])
    table = capsys.readouterr().out
    assert table == (RESULTS / "peers.ratios.md").read_text()
    assert table in (RESULTS.parents[1] / "README.md").read_text()
