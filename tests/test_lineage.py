"""Lineage: family trees, what may be deleted and renamed, and differences that are told apart from noise."""

import json
import os

import pytest
from scipy import stats

from labkit import lineage, runs
from labkit.config import DPOConfig, PretrainConfig, SFTConfig
from labkit.errors import RunError

BASE = "shipped-base-383ecad2"


def answer(number, correct, text="It is.", **parts):
    """One line of answers.jsonl, as evaluate.answers.test writes it."""
    row = {
        "id": f"entity-{number}",
        "split": "entity",
        "kind": "capital",
        "prompt": f"Question {number}?",
        "text": text,
    }
    right = float(correct)
    judged = {"stopped": True, "correct": right, "helpful": right, "concise": right, "safe": 1.0, "gold": 1 + 2 * right}
    return {**row, **judged, **parts}


def keep_answers(run, rows):
    (run.path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def trained(stage, config, parent, losses=(2.0, 1.0), **metrics):
    run = runs.open_run(stage, config, parent=parent, data_hash="d1")
    for step, loss in enumerate(losses, 1):
        run.log(step, loss=loss)
    return run.finish(**metrics)


def family():
    """base -> sft -> (dpo, dpo with another beta), and a second sft of the base; oldest first."""
    sft = trained("sft", SFTConfig(), BASE, held_out_loss=0.25)
    dpo = trained("dpo", DPOConfig(), sft.id, accuracy=0.5)
    other = trained("dpo", DPOConfig(beta=0.3, steps=7), sft.id, accuracy=0.75)
    return [sft, dpo, other, trained("sft", SFTConfig(seed=1), BASE)]


def ids(found):
    return [run.id for run in found]


def rewrite(run, **changes):
    """Change run.json by hand."""
    (run.path / "run.json").write_text(json.dumps(run.info | changes))


def pairs(both, only_a, only_b, neither):
    """Two runs' answers with these counts of right ones."""
    cells = [(1, 1)] * both + [(1, 0)] * only_a + [(0, 1)] * only_b + [(0, 0)] * neither
    return [[answer(n, cell[side]) for n, cell in enumerate(cells)] for side in (0, 1)]


def test_the_tree_as_nodes_and_as_text(store):
    sft, dpo, other, second = family()
    lineage.rename(dpo.id, "low beta")
    (root,) = lineage.tree(runs.all_runs())
    assert root.name == BASE and root.run is None
    assert [node.name for node in root.children] == [sft.id, second.id]
    assert [node.run.id for node in root.children[0].children] == [dpo.id, other.id]
    assert lineage.draw(runs.all_runs()).split("\n") == [
        f"{BASE}  (not a run in this store)",
        f"├── {sft.id}  sft  finished  held_out_loss=0.25",
        f'│   ├── {dpo.id}  "low beta"  dpo  finished  accuracy=0.5',
        f"│   └── {other.id}  dpo  finished  accuracy=0.75",
        f"└── {second.id}  sft  finished",
    ]
    assert lineage.draw([]) == "no runs yet"


def test_a_run_whose_parent_is_gone_or_nobody_is_drawn_too(store):
    alone = trained("pretrain", PretrainConfig(), "")
    orphan = trained("sft", SFTConfig(), "pretrain-nano-0")
    assert [node.name for node in lineage.tree([alone, orphan])] == [alone.id, "pretrain-nano-0"]
    assert lineage.ancestors(alone) == [] and lineage.ancestors(orphan) == ["pretrain-nano-0"]


def test_ancestors_reach_the_model_outside_the_store(store):
    sft, dpo, *_ = family()
    assert lineage.ancestors(dpo) == [sft.id, BASE]


def test_a_parent_given_as_a_folder_is_known(store):
    """`model` may be the checkpoint folder of a run: that run is the parent."""
    first = trained("pretrain", PretrainConfig(), "")
    second = trained("sft", SFTConfig(model=str(first.checkpoint)), str(first.checkpoint))
    assert lineage.ancestors(second) == [first.id] and ids(lineage.dependents(first.id)) == [second.id]


def test_a_circle_made_by_hand_is_cut(store):
    sft, dpo, other, _ = family()
    rewrite(sft, parent=dpo.id)
    drawn = lineage.draw(runs.all_runs())
    assert all(drawn.count(run.id) == 1 for run in (sft, dpo, other))
    assert set(ids(lineage.dependents(sft.id))) == {dpo.id, other.id}


def test_dependents_at_any_depth_and_through_the_configuration(store):
    sft, dpo, other, second = family()
    deep = trained("dpo", DPOConfig(steps=9), dpo.id)
    assert ids(lineage.dependents(sft.id)) == [dpo.id, other.id, deep.id]
    assert lineage.dependents(second.id) == []
    rewrite(deep, config={**deep.config, "reward_model": second.id})
    assert ids(lineage.dependents(second.id)) == [deep.id]


def test_delete_names_what_depends_on_it_and_deletes_nothing(store):
    sft, dpo, other, _ = family()
    with pytest.raises(RunError, match=f"with_dependents.*{dpo.id}, {other.id} came from it"):
        lineage.delete(sft.id)
    assert len(runs.all_runs()) == 4


def test_delete_with_and_without_dependents(store):
    sft, dpo, other, second = family()
    assert lineage.delete(dpo.id) == [dpo.id] and not dpo.path.exists()
    assert set(lineage.delete(sft.id, with_dependents=True)) == {sft.id, other.id}
    assert ids(runs.all_runs()) == [second.id] and not sft.path.exists()


def test_a_running_run_is_neither_deleted_nor_renamed(store):
    sft, dpo, *_ = family()
    rewrite(dpo, status="running", pid=os.getpid())
    with pytest.raises(RunError, match=f"{dpo.id} must not be running"):
        lineage.delete(dpo.id)
    with pytest.raises(RunError, match=f"{dpo.id} must not be running"):
        lineage.delete(sft.id, with_dependents=True)
    with pytest.raises(RunError, match="must not be running to be renamed"):
        lineage.rename(dpo.id, "mine")
    assert len(runs.all_runs()) == 4


@pytest.mark.parametrize("name", ["sft-nano", "", "..", "../runs"])
def test_only_a_whole_id_is_deleted(store, name):
    trained("sft", SFTConfig(), BASE)
    with pytest.raises(RunError):
        lineage.delete(name)
    assert len(runs.all_runs()) == 1


@pytest.mark.parametrize("linked", ["run", "stage"])
def test_nothing_outside_the_store_is_deleted(store, tmp_path, linked):
    run = trained("sft", SFTConfig(), BASE)
    inside = run.path if linked == "run" else run.path.parent
    outside = inside.rename(tmp_path / "elsewhere")
    inside.symlink_to(outside)
    with pytest.raises(RunError, match="must lie in"):
        lineage.delete(run.id)
    assert list(outside.rglob("run.json"))


def test_a_link_to_another_run_does_not_delete_that(store):
    run = trained("sft", SFTConfig(), BASE)
    (store / "sft" / "alias").symlink_to(run.path)
    with pytest.raises(RunError, match="It is a link"):
        lineage.delete("alias")
    assert (run.path / "run.json").exists()


def test_a_label_stays_and_the_id_too(store):
    sft, dpo, *_ = family()
    assert lineage.rename(dpo.id, "  β 0.1, two passes ").id == dpo.id
    assert lineage.label(runs.get(dpo.id)) == "β 0.1, two passes" and lineage.label(runs.get(sft.id)) == ""
    assert runs.find_run("dpo", DPOConfig(), parent=sft.id, data_hash="d1").info["label"] == "β 0.1, two passes"
    lineage.rename(dpo.id, "β 0.1, two passes")
    stopped = runs.open_run("sft", SFTConfig(seed=5)).stop()
    lineage.rename(stopped.id, "goes on")
    assert lineage.label(runs.open_run("sft", SFTConfig(seed=5)).finish()) == "goes on"


@pytest.mark.parametrize(
    "name", ["", "  ", "x" * 61, "a/b", "a\\b", "a\nb", "\x1b[31m", "\u202egnp", "\ud800", None, 3]
)
def test_a_bad_label_is_refused(store, name):
    run = trained("sft", SFTConfig(), BASE)
    with pytest.raises(RunError, match="label must be 1 to 60 printable characters"):
        lineage.rename(run.id, name)
    assert "label" not in runs.get(run.id).info


def test_a_label_is_unique(store):
    sft, dpo, *_ = family()
    lineage.rename(sft.id, "Best")
    for taken in ("best", sft.id):
        with pytest.raises(RunError, match=f"unique.*{sft.id} has it"):
            lineage.rename(dpo.id, taken)


def test_labels_written_by_hand_cannot_steer_a_terminal(store):
    run = trained("sft", SFTConfig(), BASE)
    rewrite(run, label="\x1b[31m\nred\u202e")
    assert all(sign.isprintable() or sign == "\n" for sign in lineage.draw(runs.all_runs()))
    assert lineage.draw(runs.all_runs()).count("\n") == 1


def test_only_what_differs(store):
    sft, dpo, other, second = family()
    assert lineage.differences([dpo, other]) == [
        {"field": "steps", dpo.id: 160, other.id: 7},
        {"field": "beta", dpo.id: 0.1, other.id: 0.3},
    ]
    assert lineage.differences([dpo, dpo]) == [] and lineage.differences([dpo]) == [] and lineage.differences([]) == []
    rewrite(second, data_hash="d2", versions={**second.info["versions"], "trl": "0.1"})
    found = {row["field"]: (row[sft.id], row[second.id]) for row in lineage.differences([sft, second.reload()])}
    assert found.pop("versions.trl")[1] == "0.1"
    assert found == {"seed": (0, 1), "data_hash": ("d1", "d2")}
    fields = {row["field"]: row[sft.id] for row in lineage.differences([sft, dpo])}
    assert fields["parent"] == BASE and fields["stage"] == "sft" and fields["beta"] is None and "seed" not in fields


def test_answers_are_read_back(store):
    run = trained("sft", SFTConfig(), BASE)
    assert lineage.answers_of(run) == []
    rows = [answer(1, True), answer(2, False, text="naïve \u2028 text")]
    keep_answers(run, rows)
    assert lineage.answers_of(run) == rows


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "7", '{"id": "x"}', json.dumps(answer(1, 1, text=3)), json.dumps(answer(1, 1, gold=float("nan")))],
)
def test_a_line_that_is_no_answer_is_told(store, line):
    run = trained("sft", SFTConfig(), BASE)
    (run.path / "answers.jsonl").write_text(json.dumps(answer(0, True)) + "\n" + line + "\n")
    with pytest.raises(RunError, match=f"line 2 of {run.id}'s answers.*Delete"):
        lineage.answers_of(run)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((36, 12, 2, 0), (0.2, 0.0569, 0.3404)),  # Newcombe (1998), table III
        ((59, 6, 16, 80), (-0.0621, -0.1186, -0.0046)),  # Fagerland, Lydersen, Laake: Contingency Tables, ch. 8 (Cavo)
    ],
)
def test_paired_shares_against_published_intervals(counts, expected):
    found = lineage.paired_difference(*pairs(*counts))
    assert [round(found[name], 4) for name in ("difference", "low", "high")] == list(expected)
    assert (found["pairs"], found["a_higher"], found["b_higher"]) == (sum(counts), counts[1], counts[2])
    assert found["share"] and found["reading"] == ("a is higher" if expected[0] > 0 else "b is higher")


def test_pairs_see_what_two_intervals_cannot_and_noise_is_called_so():
    found = lineage.paired_difference(*pairs(860, 25, 5, 110))
    a, b = (lineage.intervals.proportion(right, 1000) for right in (885, 865))
    assert found["reading"] == "a is higher" and a[1] < b[2]  # the separate intervals overlap
    assert lineage.paired_difference(*pairs(860, 15, 12, 110))["reading"] == "noise"
    same = lineage.paired_difference(*pairs(50, 0, 0, 50))
    assert same["reading"] == "noise" and same["low"] < -0.01 < 0.01 < same["high"]  # no change is no certainty
    one = lineage.paired_difference(*pairs(0, 1, 0, 0))
    assert one["reading"] == "noise" and one["difference"] == 1.0


def test_graded_parts_have_the_paired_t_interval():
    rows_a, rows_b = pairs(5, 9, 2, 4)
    rows_a[0]["gold"] = 2.5
    found = lineage.paired_difference(rows_a, rows_b, "gold")
    expected = stats.ttest_rel([row["gold"] for row in rows_a], [row["gold"] for row in rows_b])
    interval = expected.confidence_interval()
    assert not found["share"] and (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))
    assert found["reading"] == "a is higher" and expected.pvalue < 0.05


def test_only_shared_questions_are_paired_in_any_order():
    rows_a, rows_b = pairs(3, 2, 1, 4)
    changed = {**answer(99, True), "prompt": "another"}
    found = lineage.paired_difference([*rows_a, answer(50, True), answer(99, True)], [changed, *rows_b[::-1]])
    assert found == lineage.paired_difference(rows_a, rows_b) and found["pairs"] == 10


@pytest.mark.parametrize(
    ("rows_b", "key"), [([], "correct"), ([answer(7, True)], "correct"), ([answer(1, True)], "text")]
)
def test_what_cannot_be_paired_is_told(rows_b, key):
    with pytest.raises(RunError, match="in common"):
        lineage.paired_difference([answer(1, True)], rows_b, key)
