"""Alarms: each is provoked, and a healthy run raises none."""

from labkit import health


def history(**columns):
    return [{"step": n, **{k: v[n] for k, v in columns.items()}} for n in range(len(next(iter(columns.values()))))]


def names(rows):
    return {alarm.name for alarm in health.alarms(rows)}


def test_a_healthy_run_raises_nothing():
    falling = [3 - 0.1 * n for n in range(20)]
    assert names(history(loss=falling, held_out_loss=falling, grad_norm=[1.0] * 20)) == set()
    chosen, rejected = [-30 + 0.2 * n for n in range(20)], [-40.0 - n for n in range(20)]
    margin = [0.1 * n for n in range(20)]
    assert names(history(loss=falling, margin=margin, log_probs_chosen=chosen, log_probs_rejected=rejected)) == set()
    assert health.alarms([]) == []


def test_each_fault_has_its_alarm():
    falling, rising = [3 - 0.1 * n for n in range(20)], [1 + 0.2 * n for n in range(20)]
    assert names(history(loss=[1.0, None, 2.0])) == {"not_a_number"}
    assert names(history(loss=rising)) == {"diverging"}
    assert names(history(loss=falling, held_out_loss=[2.0] * 4 + [1 + 0.1 * n for n in range(16)])) == {"overfitting"}
    assert names(history(loss=falling, grad_norm=[1.0] * 19 + [50.0])) == {"gradient_spike"}
    both = history(log_probs_chosen=[-30 - n for n in range(20)], log_probs_rejected=[-40 - 2 * n for n in range(20)])
    assert names(both) == {"chosen_falls"}
    one = history(margin=[0.1 * n for n in range(20)], log_probs_chosen=[-30 - 0.1 * n for n in range(20)],
                  log_probs_rejected=[-40 - 2 * n for n in range(20)])  # fmt: skip
    assert names(one) == {"margin_by_rejected"}


def test_an_alarm_says_what_it_means_and_what_to_turn():
    alarm = health.alarms(history(loss=[1 + 0.2 * n for n in range(20)]))[0]
    assert alarm.step == 19 and "rises" in alarm.meaning and "learning_rate" in alarm.remedy
