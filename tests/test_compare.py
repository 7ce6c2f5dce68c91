"""Compare: panes from a small store, hostile text, long histories, and deletions that take two clicks."""

import html.parser
import json
import warnings

import pytest
from hostile import HOSTILE
from ipywidgets import HTML, Button, HTMLMath, Label
from test_lineage import BASE, answer, family, keep_answers, rewrite, trained

from labkit import lineage, runs
from labkit.config import SFTConfig
from labkit.errors import RunError
from labkit.ui import compare
from labkit.ui.compare import Compare

TAGS = set("style div table tr th td pre p small br mark".split())  # the widget's own; none takes a link or a script
EVIL = "<img src=x onerror=alert(1)></td><script>alert(2)</script>\x1b[31m\u202e &amp; \ud800"


@pytest.fixture
def relatives(store):
    """The family with answers: the two dpo runs answer 45 questions, of which they disagree on six."""
    sft, dpo, other, second = family()
    keep_answers(dpo, [answer(n, n % 3 > 0, text=f"Answer {n} is old.") for n in range(45)])
    keep_answers(
        other, [answer(n, n % 3 > 0 or n < 18, text=f"Answer {n} is {'new' if n < 25 else 'old'}.") for n in range(45)]
    )
    return sft, dpo, other, second


def walk(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from walk(child)


def opened(widget, name):
    """The pane, after its tab was clicked."""
    place = compare.PANES.index(name)
    widget.tab.selected_index = place
    return widget.tab.children[place]


def shown(widget) -> str:
    return "\n".join(one.value for one in walk(widget) if isinstance(one, HTML))


def control(widget, description):
    (found,) = [one for one in walk(widget) if getattr(one, "description", None) == description]
    return found


def press(widget, description):
    control(widget, description).click()


class Tags(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}


def test_the_newest_finished_runs_are_selected_or_those_named(relatives):
    _, dpo, other, second = relatives
    assert set(Compare().select.value) == {other.id, second.id}
    assert set(Compare([dpo.id, other.id]).select.value) == {dpo.id, other.id}
    with pytest.raises(RunError, match="Near it"):
        Compare(["dpo-nano-nothing"])


def test_a_pane_is_made_when_its_tab_is_opened_and_again_after_a_change(relatives, monkeypatch):
    _, dpo, other, second = relatives
    widget = Compare([dpo.id, other.id])
    assert [bool(pane.children) for pane in widget.tab.children] == [True, *[False] * 5]
    made = opened(widget, "Curves").children
    assert opened(widget, "Differences").children and opened(widget, "Curves").children == made
    widget.select.value = (dpo.id, second.id)
    assert widget.tab.children[1].children != made
    assert "seed" in shown(opened(widget, "Differences"))
    trained("sft", SFTConfig(seed=9), BASE)
    press(widget, "Refresh")
    assert len(widget.select.options) == 5 and set(widget.select.value) == {dpo.id, second.id}


def test_differences_hold_only_what_differs(relatives):
    _, dpo, other, _ = relatives
    text = shown(opened(Compare([dpo.id, other.id]), "Differences"))
    assert "<td>beta</td><td>0.1</td><td>0.3</td>" in text and "learning_rate" not in text
    assert "Select two runs" in shown(Compare([dpo.id]).tab)


def test_metrics_have_intervals_and_noise_is_called_so(relatives):
    sft, dpo, other, _ = relatives
    pane = opened(Compare([dpo.id, other.id]), "Metrics")
    assert "<td>accuracy</td><td>0.5</td><td>0.75</td>" in shown(pane)
    assert "<td>answers: accuracy</td><td>66.7% [52.1%, 78.6%]</td><td>80.0% [66.2%, 89.1%]</td>" in shown(pane)
    found = lineage.paired_difference(lineage.answers_of(dpo), lineage.answers_of(other))
    assert f"<td>-13.3% [{found['low']:+.1%}, {found['high']:+.1%}]</td><td>b is higher</td><td>45</td>" in shown(pane)
    control(pane, "Part").value = "safe"
    assert "safe: a - b" in shown(pane) and "<td>noise</td>" in shown(pane)
    assert "Select two runs with answers" in shown(opened(Compare([dpo.id, sft.id]), "Metrics"))


def test_runs_without_a_question_in_common_are_told_apart_from_noise(relatives):
    _, dpo, other, _ = relatives
    keep_answers(other, [answer(1000, True)])
    widget = Compare([dpo.id, other.id])
    text = shown(opened(widget, "Metrics"))
    assert "<td>answers: accuracy</td>" in text
    assert "<td>-</td><td>no question in common</td><td>0</td>" in text
    assert "text/html" in widget._repr_mimebundle_()


def test_answers_side_by_side_with_differing_words_marked(relatives):
    _, dpo, other, _ = relatives
    pane = opened(Compare([dpo.id, other.id]), "Answers")
    first = shown(pane)
    assert "Answer 0 is<mark> old.</mark></td>" in first and "Answer 0 is<mark> new.</mark></td>" in first
    assert first.count("<tr>") == 1 + compare.PAGE and "of 3: 45 of the 45" in first
    control(pane, "Page").value = 3
    assert shown(pane).count("<tr>") == 1 + 5 and "Answer 44 is old." in shown(pane)
    control(pane, "Show").value = "changed"
    assert "of 2: 25 of the 45" in shown(pane) and shown(pane).count("<tr>") == 1 + 5
    control(pane, "Show").value = "wrong in one run only"
    assert "of 1: 6 of the 45" in shown(pane)
    assert shown(pane).count("<small>wrong</small>") == shown(pane).count("<small>right</small>") == 6


@pytest.mark.parametrize(
    ("text", "other", "expected"),
    [
        ("a b c", "a x c", "a<mark> b</mark> c"),
        ("a", "", "<mark>a</mark>"),
        ("", "a", ""),
        ("same", "same", "same"),
        ("<b> &", "& <b>", None),
    ],
)
def test_words_are_marked_on_top_of_escaped_text(text, other, expected):
    found = compare.mark_words(text, other)
    assert Tags(found).tags <= {"mark"} and found == (expected or found)


def test_long_answers_are_shown_unmarked_and_cut():
    found = compare.mark_words("a b " * 5000, "b a " * 5000)
    assert "<mark>" not in found and len(found) < 5000


def test_a_long_history_keeps_its_extremes_in_few_points(store):
    long = trained("sft", SFTConfig(), BASE, losses=())
    values = [1 + (step % 97) / 100 for step in range(50_000)]
    values[31_234], values[41_111] = 99.0, -99.0
    lines = [json.dumps({"step": step, "loss": value}) for step, value in enumerate(values)]
    (long.path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 50000, "held_out_loss": 0.5}', ""]))
    short = trained("sft", SFTConfig(seed=1), BASE)
    pane = opened(Compare([long.id, short.id]), "Curves")
    figure = pane.children[1]
    one, two = figure.data
    assert 1000 <= len(one.x) <= 2000 and (max(one.y), min(one.y)) == (99.0, -99.0)
    assert one.x[list(one.y).index(99.0)] == 31_234 and list(one.x) == sorted(one.x)
    assert list(two.x) == [1, 2] and list(two.y) == [2.0, 1.0]
    assert one.line.color != two.line.color and one.line.dash != two.line.dash
    assert figure.layout.paper_bgcolor == "rgba(0,0,0,0)" and figure.layout.yaxis.title.text == "loss"
    control(pane, "Metric").value = "held_out_loss"
    assert list(figure.data[0].x) == [50_000] and list(figure.data[1].x) == []


def test_the_lineage_pane_draws_the_whole_store(relatives):
    pane = opened(Compare(), "Lineage")
    assert shown(pane) == f"<pre>{lineage.draw(runs.all_runs())}</pre>".replace('"', "&quot;")


def test_rename_shows_the_label_everywhere_at_once(relatives):
    _, dpo, other, _ = relatives
    widget = Compare([dpo.id, other.id])
    pane = opened(widget, "Manage")
    control(pane, "Run").value = other.id
    control(pane, "Label").value = "the best"
    press(pane, "Rename")
    assert lineage.label(runs.get(other.id)) == "the best" and widget.error.value == ""
    assert control(widget.tab.children[5], "Run").value == other.id
    assert any(text.startswith(f"the best ({other.id})") for text, _ in widget.select.options)
    assert "the best" in shown(opened(widget, "Differences"))
    pane = opened(widget, "Manage")
    control(pane, "Run").value = dpo.id
    control(pane, "Label").value = "The Best"
    press(pane, "Rename")
    assert "class='error'" in widget.error.value and "unique" in widget.error.value


def test_delete_takes_two_clicks_and_says_what_depends_on_it(relatives):
    sft, dpo, other, second = relatives
    widget = Compare([sft.id, dpo.id])
    pane = opened(widget, "Manage")
    control(pane, "Run").value = sft.id
    press(pane, "Delete ...")
    assert len(runs.all_runs()) == 4 and dpo.id in widget.done.value and other.id in widget.done.value
    assert control(pane, "Delete 3 runs").layout.display == ""
    control(pane, "Run").value = dpo.id  # another run: the offer is withdrawn
    assert control(pane, "Delete 3 runs").layout.display == "none"
    control(pane, "Run").value = sft.id
    press(pane, "Delete ...")
    press(pane, "Delete 3 runs")
    assert [run.id for run in runs.all_runs()] == [second.id]
    assert widget.select.options == ((widget.select.options[0][0], second.id),) and "Deleted" in widget.done.value


def test_a_run_born_between_the_clicks_is_not_deleted_unseen(relatives):
    _, dpo, *_ = relatives
    widget = Compare()
    pane = opened(widget, "Manage")
    control(pane, "Run").value = dpo.id
    press(pane, "Delete ...")
    child = trained("sft", SFTConfig(seed=7), dpo.id)
    press(pane, "Delete 1 run")
    assert len(runs.all_runs()) == 5 and child.id in widget.done.value
    press(pane, "Delete 2 runs")
    assert len(runs.all_runs()) == 3


def test_export_and_its_errors_are_shown(relatives, tmp_path):
    _, dpo, *_ = relatives
    widget = Compare([dpo.id])
    pane = opened(widget, "Manage")
    control(pane, "Folder").value = str(tmp_path / "out")
    press(pane, "Export")
    assert "must have a checkpoint" in widget.error.value and widget.done.value == ""
    dpo.checkpoint.mkdir()
    (dpo.checkpoint / "config.json").write_text("{}")
    press(pane, "Export")
    assert widget.error.value == "" and "Exported to" in widget.done.value and (tmp_path / "out" / "README.md").exists()
    press(pane, "Export")
    assert "new or empty" in widget.error.value and widget.done.value == ""
    control(pane, "Folder").value = str(tmp_path / "<b>out")
    press(pane, "Export")
    assert "&lt;b&gt;out" in widget.done.value and "<b>" not in widget.done.value


@pytest.mark.parametrize("name", ["metrics.jsonl", "answers.jsonl", "run.json"])
@pytest.mark.parametrize("text", ["nonsense\n", '[1]\n{"step": "x", "loss": {}}\n'])
def test_a_broken_file_is_a_red_line_and_the_rest_is_shown(relatives, name, text):
    _, dpo, other, second = relatives
    (dpo.path / name).write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning would be printed above the widget
        widget = Compare([other.id, second.id])
        if name != "run.json":
            widget.select.value = (dpo.id, other.id)
        else:
            assert dpo.id in widget.error.value
        problems = [opened(widget, pane) and widget.error.value for pane in compare.PANES]
        assert name == "run.json" or any("class='error'" in one for one in problems)
        assert other.id in shown(opened(widget, "Differences")) and widget._repr_mimebundle_()["text/html"]


def test_hostile_text_never_becomes_markup(relatives):
    _, dpo, other, _ = relatives
    rewrite(dpo, label=EVIL, config={**dpo.config, "data": EVIL, EVIL: 1}, metrics={EVIL: 1.0})
    texts = [EVIL, *HOSTILE]
    keep_answers(dpo, [answer(n, True, text=text, prompt=text, split=EVIL) for n, text in enumerate(texts)])
    keep_answers(other, [answer(n, 0, text=text[:99] + " more", prompt=text) for n, text in enumerate(texts)])
    (dpo.path / "metrics.jsonl").write_text(json.dumps({"step": 1, EVIL: 1.0}) + "\n")
    (other.path / "metrics.jsonl").write_text(EVIL.encode("utf-8", "replace").decode() + "\n")
    widget = Compare([dpo.id, other.id])
    for name in compare.PANES:
        opened(widget, name)
        press(widget, "Delete ...") if name == "Manage" else None
        before = [one.value for one in walk(widget) if isinstance(one, HTML | HTMLMath | Label)]
        if name == "Answers":
            assert "<mark>" in "".join(before)
            control(widget, "Page").value = 2
        for text in [*before, *(one.value for one in walk(widget) if isinstance(one, HTML | HTMLMath | Label))]:
            parsed = Tags(text)
            assert parsed.tags <= TAGS and parsed.attributes <= {"scope", "style", "role", "class"}, text
            assert "\x1b" not in text and "\u202e" not in text and "\ud800" not in text
    options = [text for text, _ in widget.select.options]
    assert not any(sign in text for text in options for sign in "\x1b\u202e\ud800")
    opened(widget, "Curves")
    figure = widget.tab.children[1].children[1]
    assert all("<" not in str(text) for text in (figure.data[0].name, figure.layout.yaxis.title.text))
    bundle = widget._repr_mimebundle_()
    assert Tags(bundle["text/html"]).tags <= TAGS and "\x1b" not in bundle["text/plain"] + bundle["text/html"]
    assert len(json.dumps(bundle, ensure_ascii=False).encode("utf-8")) < 100_000


def test_the_saved_notebook_reads_without_a_widget(relatives):
    _, dpo, other, _ = relatives
    bundle = Compare([dpo.id, other.id])._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"]
    for kind in ("text/plain", "text/html"):
        for part in ("beta", "0.3", "answers: accuracy", "66.7% [52.1%, 78.6%]", "b is higher"):
            assert part in bundle[kind]
    assert "<" not in bundle["text/plain"]


def test_every_control_has_a_label_and_a_tooltip_and_takes_the_keyboard(relatives):
    widget = Compare([run.id for run in relatives])
    for name in compare.PANES:
        opened(widget, name)
    opened(widget, "Manage")
    press(widget, "Delete ...")
    controls = [
        one for one in walk(widget) if isinstance(one, Button) or "options" in one.traits() or "value" in one.traits()
    ]
    controls = [one for one in controls if not isinstance(one, HTML)]
    assert len(controls) == 13
    for one in controls:
        assert one.description and one.tooltip and one.tabbable is not False, one


def test_an_empty_store_says_so(store):
    widget = Compare()
    for name in compare.PANES:
        assert shown(opened(widget, name)) and widget.error.value == "", name
    assert "train a stage first" in shown(widget.tab) and widget._repr_mimebundle_()["text/plain"]
