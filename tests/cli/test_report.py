"""The command `keras-sat report`."""

import json
import os
import warnings

import pytest

from keras_sat.evaluation import AttackResult, RobustnessReport
from keras_sat.evaluation.signs import Signs


def a_report(correct=60, epsilon=8.0, **context):
    settings = {"attack": "PGD", "norm": "linf", "epsilon": epsilon, "bounds": [0.0, 255.0], "steps": 10}
    rows = [AttackResult.of("clean", 100, 80, 1, {}), AttackResult.of("PGD-10", 100, correct, 1, settings)]
    context = {"model": "net", "dataset": "squares", "split": "test", "seed": 0, "versions": {}, **context}
    return RobustnessReport(rows, context, signs=Signs(64, False, 0))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, report in {"a": a_report(), "b": a_report(50), "far": a_report(30, 16.0)}.items():
        os.mkdir(name)
        report.to_json(f"{name}/report.json")
    return tmp_path


def test_pages_of_one_and_of_several_reports(inside, here, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert inside("report", "a", "b/report.json", "--to=both.html") == 0
    assert capsys.readouterr().out == "Written to both.html\n"
    page = (here / "both.html").read_text()
    assert "<strong>60.0 %</strong>" in page
    assert "<strong>50.0 %</strong>" in page
    assert "both.json" not in os.listdir(here)
    with (
        pytest.warns(UserWarning, match="different threat models .*epsilon 8 .*epsilon 16"),
        pytest.warns(UserWarning, match="No attack is in two reports with the same settings"),
    ):
        assert inside("report", "a", "far") == 0
    assert "different threat models" in (here / "keras-sat-report.html").read_text()
    assert inside("report", "a", "--to=a/own.html") == 0
    assert "Robustness of net</title>" in (here / "a" / "own.html").read_text()


def test_bad_input(inside, here):
    (here / "other.json").write_text(json.dumps({"results": {"original": 3}}))
    (here / "rows.json").write_text(json.dumps({"results": [{"name": "clean"}], "context": {}, "examples": {}}))
    for name, changes in (("many", {"correct": 999}), ("words", {"accuracy": "high"})):
        changed = json.loads((here / "a" / "report.json").read_text())
        changed["results"][0] |= changes
        (here / f"{name}.json").write_text(json.dumps(changed))
    (here / "audit.json").write_text(json.dumps({"checks": []}))
    (here / "text.json").write_text("no JSON")
    (here / "list.json").write_text("[]")
    (here / "empty").mkdir()
    os.symlink("a/report.json", "link.json")
    for words, message in (
        (("a", "nowhere"), "There is no file or folder nowhere"),
        (("empty",), "empty holds no report.json: `keras-sat evaluate` writes one"),
        (("a", "link.json"), "a and link.json hold the same report"),
        (("other.json",), "other.json does not hold a report of an evaluation.*no list of results"),
        (("rows.json",), "rows.json does not hold a report"),
        (("many.json",), "many.json does not hold a report.*clean: 999 of .* images are not"),
        (("words.json",), "words.json does not hold a report"),
        (("audit.json",), "audit.json does not hold a report.*it has no 'results'"),
        (("text.json",), "text.json does not hold a report"),
        (("list.json",), "list.json does not hold a report.*no list of results"),
        (("a", "--to=a/report.json"), "--to is the page to write, such as keras-sat-report.html"),
        (("a", "--to=new/page.html"), "there is no folder .*new"),
    ):
        with pytest.raises(ValueError, match=message) as raised:
            inside("report", *words)
        assert "\n" not in str(raised.value)
