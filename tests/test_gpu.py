"""One command for a machine with a GPU: pieces run, are cut, go on, and come back as one file."""

import json

import pytest

from experiments import gpu

COUNTS = """
import json, pathlib, sys, time
path = pathlib.Path(sys.argv[1])
seen = json.loads(path.read_text())["seen"] if path.exists() else 0
path.write_text(json.dumps({"seen": seen + 1}))
time.sleep(60 if seen == 0 else 0)
sys.exit(int(sys.argv[2]))
"""


@pytest.fixture
def piece(tmp_path, monkeypatch):
    """A module that counts its runs, and whose first run is too long."""
    (tmp_path / "counts.py").write_text(COUNTS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    out = tmp_path / "out"
    out.mkdir()

    def run(status=0):
        command = ["counts", str(out / "seen.json"), str(status)]
        return gpu.run("piece", command, out, minutes=2 / 60)

    return out, run


def test_a_piece_that_is_cut_goes_on_and_what_is_finished_is_not_done_again(piece, capsys):
    out, run = piece
    assert [run(), run(), run()] == [False, True, True]
    assert json.loads((out / "seen.json").read_text()) == {"seen": 2}
    shown = capsys.readouterr().out
    assert "piece: to be continued" in shown
    assert "piece: finished" in shown


def test_a_piece_that_fails_is_tried_again(piece):
    out, run = piece
    run()
    assert not run(status=1)
    assert run()
    assert json.loads((out / "seen.json").read_text()) == {"seen": 3}


def test_results_come_back_as_one_file_labelled_by_the_hardware(tmp_path):
    out = tmp_path / "out"
    (out / "cifar10").mkdir(parents=True)
    (out / "cifar10" / "full.json").write_text('{"trials": [1]}')
    packed = gpu.pack(out)
    assert gpu.pack(out) == packed  # the pack itself is no result
    written = gpu.unpacked(packed, into=tmp_path / "results")
    assert written == [tmp_path / "results" / "cpu" / "cifar10" / "full.json"]
    assert json.loads(written[0].read_text()) == {"trials": [1]}


@pytest.mark.parametrize("scale", ["smoke", "paper"])
def test_every_piece_is_a_command_that_there_is(scale, tmp_path):
    for name, (module, *arguments) in gpu.pieces(scale, tmp_path).items():
        assert module == "pytest" or module.startswith("experiments."), name
        assert "--out" in arguments or module == "pytest"
