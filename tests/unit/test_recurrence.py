"""The next date of a rule, beside two other implementations of RFC 5545."""

import json
import random
import re
import subprocess
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple

import pytest
from dateutil.rrule import rrule, rrulestr
from pydantic import TypeAdapter, ValidationError

from fields import Recurrence
from recurrence import check, following, parse
from tests.support.node import JS, node

DAYS = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")


class Case(NamedTuple):
    rule: str
    due_date: str
    repeat_from: str
    today: date


def moment(due_date: str) -> datetime:
    """When that is, a day at its begin, in UTC."""
    return datetime.fromisoformat(due_date).replace(tzinfo=UTC)


def spelt(due_date: str) -> str:
    """The due date as UNTIL spells it."""
    short = due_date.removesuffix(".000000Z") + "Z" * due_date.endswith("Z")
    return short.replace("-", "").replace(":", "")


def in_kind_of(due_date: str, day: date) -> str:
    return day.isoformat() + due_date[10:]


def a_case(luck: random.Random) -> Case:
    freq = luck.choice(["DAILY", "WEEKLY", "MONTHLY", "MONTHLY", "YEARLY"])
    parts = [f"FREQ={freq}"]
    if luck.random() < 0.7:
        parts.append(f"INTERVAL={luck.choice([1, 2, 3, 4, 6, 12, luck.randint(1, 40)])}")
    if freq == "WEEKLY" and luck.random() < 0.7:
        parts.append("BYDAY=" + ",".join(luck.sample(DAYS, luck.randint(1, 7))))
    if freq == "MONTHLY":
        by_day = f"BYDAY={luck.choice([1, 2, 3, 4, -1])}{luck.choice(DAYS)}"
        by_month_day = f"BYMONTHDAY={luck.choice([-1, 29, 30, 31, luck.randint(1, 31)])}"
        parts += luck.choice([[], [by_day], [by_month_day]])
    day = date(luck.randint(1970, 2060), 1, 1) + timedelta(luck.randint(0, 365))
    if luck.random() < 0.2:
        day = luck.choice([date(2024, 2, 29), date(2000, 2, 29), date(2023, 1, 31)])
    second = f"T{luck.randint(0, 23):02}:{luck.randint(0, 59):02}:{luck.randint(0, 59):02}"
    due_date = day.isoformat() + luck.choice(["", second, second + ".000000Z"])
    today = day + timedelta(luck.choice([0, -1, 1, luck.randint(-400, 400), luck.randint(0, 9000)]))
    limit = luck.random()
    if limit < 0.2:
        parts.append(f"COUNT={luck.choice([1, 2, luck.randint(1, 9999)])}")
    elif limit < 0.5:
        until = today + timedelta(luck.randint(-10, 800))
        parts.append(f"UNTIL={spelt(in_kind_of(due_date, until))}")
    luck.shuffle(parts)
    return Case(";".join(parts), due_date, luck.choice(["due", "due", "completed"]), today)


def series(case: Case) -> tuple[datetime, str, datetime]:
    """Where the series begins, its rule but for COUNT, and what its next date is after."""
    due = moment(case.due_date)
    midnight = datetime.combine(case.today, datetime.max.time(), UTC)
    start = due
    if case.repeat_from == "completed":
        start = moment(in_kind_of(case.due_date, case.today))
    rule = ";".join(part for part in case.rule.split(";") if not part.startswith("COUNT"))
    return start, rule, max(midnight, start)


def count(case: Case) -> int | None:
    return next((int(part[6:]) for part in case.rule.split(";") if part.startswith("COUNT")), None)


def by_dateutil(case: Case) -> str | None:
    """The due date of the next task, as `python-dateutil` has it."""
    start, rule, after = series(case)
    parts = [part for part in rule.split(";") if not part.startswith("UNTIL")]
    until = [part[6:] for part in rule.split(";") if part.startswith("UNTIL")]
    dates = rrulestr(";".join(parts), dtstart=start)
    assert isinstance(dates, rrule)
    if until:
        last = datetime.fromisoformat(until[0].removesuffix("Z")).replace(tzinfo=UTC)
        dates = dates.replace(until=last)
    found = dates.after(after)
    if found is None or count(case) == 1:
        return None
    return in_kind_of(case.due_date, found.date())


def next_due(case: Case) -> str | None:
    check(case.rule, case.due_date)
    found = following(case.rule, case.due_date, None, case.repeat_from, case.today)
    if found is None:
        return None
    left = count(case)
    expected = (
        case.rule if left is None else case.rule.replace(f"COUNT={left}", f"COUNT={left - 1}")
    )
    assert found[1:] == (None, expected)
    return found[0]


def test_the_next_date_is_that_of_dateutil() -> None:
    luck = random.Random(5545)
    ended = 0
    for _ in range(6000):
        case = a_case(luck)
        expected = by_dateutil(case)
        assert next_due(case) == expected, case
        ended += expected is None
    assert 300 < ended < 3000


def test_the_next_date_is_that_of_rrule_temporal() -> None:
    luck = random.Random(2445)
    cases = [case for case in (a_case(luck) for _ in range(400)) if count(case) is None]
    asked = []
    for case in cases:
        start, rule, after = series(case)
        parts = [part for part in rule.split(";") if not part.startswith("UNTIL")]
        until = [part[6:] for part in rule.split(";") if part.startswith("UNTIL")]
        parts += [
            f"UNTIL={day.removesuffix('Z')}{'' if 'T' in day else 'T000000'}Z" for day in until
        ]
        when = [f"{it:%Y-%m-%dT%H:%M:%SZ}" for it in (start, after)]
        asked.append((when[0], ";".join(parts), when[1]))
    command = [node(), "rrule_temporal.mjs"]
    result = subprocess.run(
        command, cwd=JS, input=json.dumps(asked), capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, re.findall(r"^\w*Error: .*", result.stderr, re.M)
    for case, found in zip(cases, json.loads(result.stdout), strict=True):
        assert next_due(case) == (found and in_kind_of(case.due_date, moment(found).date())), case


@pytest.mark.parametrize(
    ("rule", "due_date", "today", "expected"),
    [
        ("FREQ=WEEKLY;BYDAY=MO,TU,WE,TH,FR", "2026-11-20", "2026-11-20", "2026-11-23"),
        ("FREQ=MONTHLY;BYDAY=2TU", "2026-11-10", "2026-11-09", "2026-12-08"),
        ("FREQ=MONTHLY;BYDAY=-1FR", "2026-11-27", "2027-01-29", "2027-02-26"),
        ("FREQ=MONTHLY;BYMONTHDAY=-1", "2027-01-31", "2027-01-31", "2027-02-28"),
        ("FREQ=MONTHLY", "2027-01-31", "2027-01-31", "2027-03-31"),
        ("FREQ=YEARLY", "2028-02-29", "2028-03-01", "2032-02-29"),
        ("FREQ=YEARLY;INTERVAL=100", "2000-02-29", "2026-11-21", "2400-02-29"),
        ("FREQ=YEARLY;INTERVAL=25", "2000-02-29", "2026-11-21", "2400-02-29"),
        ("FREQ=YEARLY;INTERVAL=999", "0001-01-01", "9991-01-01", None),
        ("FREQ=MONTHLY;INTERVAL=12;BYMONTHDAY=30", "2026-02-10", "2026-02-10", None),
        ("FREQ=MONTHLY;INTERVAL=996", "0004-02-29", "2026-11-21", "2328-02-29"),
        ("FREQ=DAILY", "0001-01-01T23:59:59", "9999-12-30", "9999-12-31T23:59:59"),
        ("FREQ=DAILY", "0001-01-01", "9999-12-31", None),
        ("FREQ=WEEKLY;INTERVAL=999", "9999-12-31", "2026-11-21", None),
        ("FREQ=MONTHLY", "9999-12-31T00:00:00.000000Z", "2026-11-21", None),
        # A clock time later today is of today.
        ("FREQ=DAILY", "2026-11-20T23:00:00", "2026-11-21", "2026-11-22T23:00:00"),
        ("FREQ=DAILY;UNTIL=20261121", "2026-11-20", "2026-11-20", "2026-11-21"),
        ("FREQ=DAILY;UNTIL=20261121T100000", "2026-11-20T10:00:01", "2026-11-20", None),
        ("FREQ=DAILY;UNTIL=20261121T100000Z", "2026-11-20T10:00:00.000001Z", "2026-11-20", None),
        ("FREQ=DAILY;COUNT=1", "2026-11-20", "2026-11-20", None),
    ],
)
def test_the_dates_that_people_ask_about(
    rule: str, due_date: str, today: str, expected: str | None
) -> None:
    check(rule, due_date)
    found = following(rule, due_date, None, "due", date.fromisoformat(today))
    assert (found and found[0]) == expected


def test_count_counts_tasks_and_not_the_dates_that_were_skipped() -> None:
    today = date(2026, 11, 21)
    second = following("COUNT=3;FREQ=DAILY", "2026-01-01", None, "due", today)
    assert second == ("2026-11-22", None, "COUNT=2;FREQ=DAILY")
    third = following(second[2], second[0], None, "due", today)
    assert third == ("2026-11-23", None, "COUNT=1;FREQ=DAILY")
    assert following(third[2], third[0], None, "due", today) is None


def test_done_early_counts_from_then_if_that_is_asked_for() -> None:
    rule = ("FREQ=WEEKLY", "2026-12-25", None)
    today = date(2026, 11, 21)
    assert following(*rule, "due", today) == ("2027-01-01", None, "FREQ=WEEKLY")
    assert following(*rule, "completed", today) == ("2026-11-28", None, "FREQ=WEEKLY")


@pytest.mark.parametrize(
    ("due_date", "remind_at", "expected"),
    [
        ("2026-11-21", "2026-11-20T18:00:00", "2026-12-20T18:00:00"),
        ("2026-11-21T08:00:00", "2026-11-21T07:30:00.000000Z", "2026-12-21T07:30:00.000000Z"),
    ],
)
def test_the_reminder_moves_along(due_date: str, remind_at: str, expected: str) -> None:
    found = following("FREQ=MONTHLY", due_date, remind_at, "due", date(2026, 11, 21))
    assert found is not None
    assert found[:2] == ("2026-12" + due_date[7:], expected)


def test_a_reminder_beyond_the_year_9999_ends_the_series() -> None:
    late = "9999-12-31T10:00:00"
    assert following("FREQ=DAILY", "2026-11-21", late, "due", date(2026, 11, 21)) is None


REFUSED = [
    ("", "an empty part"),
    ("FREQ", "FREQ"),
    ("FREQ=", "FREQ"),
    ("INTERVAL=2", "FREQ"),
    ("freq=DAILY", "freq"),
    ("FREQ=daily", "FREQ"),
    ("FREQ=HOURLY", "FREQ"),
    ("FREQ=DAILY\n", "FREQ"),
    (" FREQ=DAILY", " FREQ"),
    ("RRULE:FREQ=DAILY", "RRULE:FREQ"),
    ("FREQ=DAILY;", "an empty part"),
    (";FREQ=DAILY", "an empty part"),
    ("FREQ=DAILY;=2", "an empty part"),
    ("FREQ=DAILY;FREQ=DAILY", "FREQ"),
    ("FREQ=DAILY;COUNT=2;COUNT=3", "COUNT"),
    ("FREQ=DAILY;INTERVAL=0", "INTERVAL"),
    ("FREQ=DAILY;INTERVAL=02", "INTERVAL"),
    ("FREQ=DAILY;INTERVAL=-1", "INTERVAL"),
    ("FREQ=DAILY;INTERVAL=1000", "INTERVAL"),
    ("FREQ=DAILY;INTERVAL=\u0661", "INTERVAL"),
    ("FREQ=DAILY;INTERVAL=2=2", "INTERVAL"),
    ("FREQ=DAILY;COUNT=0", "COUNT"),
    ("FREQ=DAILY;COUNT=10000", "COUNT"),
    ("FREQ=DAILY;COUNT=2;UNTIL=20261121", "COUNT"),
    ("FREQ=DAILY;UNTIL=2026-11-21", "UNTIL"),
    ("FREQ=DAILY;UNTIL=20261121T240000", "UNTIL"),  # Python 3.14 takes it for the next day
    ("FREQ=DAILY;UNTIL=20260229", "UNTIL"),
    ("FREQ=DAILY;UNTIL=00000101", "UNTIL"),
    ("FREQ=DAILY;UNTIL=20261121T2500", "UNTIL"),
    ("FREQ=DAILY;UNTIL=20261121T250000", "UNTIL"),
    ("FREQ=DAILY;UNTIL=20261121T235960Z", "UNTIL"),
    ("FREQ=DAILY;BYDAY=MO", "BYDAY"),
    ("FREQ=YEARLY;BYDAY=MO", "BYDAY"),
    ("FREQ=WEEKLY;BYDAY=", "BYDAY"),
    ("FREQ=WEEKLY;BYDAY=1MO", "BYDAY"),
    ("FREQ=WEEKLY;BYDAY=MO,", "BYDAY"),
    ("FREQ=WEEKLY;BYDAY=MO,TU,MO", "BYDAY"),
    ("FREQ=WEEKLY;BYDAY=mo", "BYDAY"),
    ("FREQ=MONTHLY;BYDAY=MO", "BYDAY"),
    ("FREQ=MONTHLY;BYDAY=5MO", "BYDAY"),
    ("FREQ=MONTHLY;BYDAY=-2MO", "BYDAY"),
    ("FREQ=MONTHLY;BYDAY=+1MO", "BYDAY"),
    ("FREQ=MONTHLY;BYDAY=1MO,2MO", "BYDAY"),
    ("FREQ=MONTHLY;BYDAY=1MO;BYMONTHDAY=1", "BYDAY"),
    ("FREQ=MONTHLY;BYMONTHDAY=0", "BYMONTHDAY"),
    ("FREQ=MONTHLY;BYMONTHDAY=32", "BYMONTHDAY"),
    ("FREQ=MONTHLY;BYMONTHDAY=-2", "BYMONTHDAY"),
    ("FREQ=MONTHLY;BYMONTHDAY=1,15", "BYMONTHDAY"),
    ("FREQ=WEEKLY;BYMONTHDAY=1", "BYMONTHDAY"),
    ("FREQ=YEARLY;BYMONTH=2", "BYMONTH"),
    ("FREQ=MONTHLY;BYDAY=MO,TU;BYSETPOS=-1", "BYDAY"),
    ("FREQ=WEEKLY;WKST=SU", "WKST"),
    ("FREQ=WEEKLY;X-THING=1", "X-THING"),
    ("FREQ=DAILY\nRRULE:FREQ=WEEKLY", "FREQ"),
]


@pytest.mark.parametrize(("rule", "part"), REFUSED)
def test_a_rule_outside_the_subset_is_refused_by_its_part(rule: str, part: str) -> None:
    with pytest.raises(ValueError, match="must") as refused:
        parse(rule)
    assert str(refused.value).startswith(part + " must")


def test_a_word_that_is_no_rule_is_answered_with_one_that_is() -> None:
    with pytest.raises(ValueError, match="one is ") as refused:
        parse("daily")
    parse(str(refused.value).partition("one is ")[2])


@pytest.mark.parametrize(
    ("until", "due_date"),
    [
        ("20261121", "2026-11-21T10:00:00"),
        ("20261121T100000", "2026-11-21T10:00:00.000000Z"),
        ("20261121T100000Z", "2026-11-21"),
    ],
)
def test_until_is_of_the_kind_of_the_due_date(until: str, due_date: str) -> None:
    with pytest.raises(ValueError, match="UNTIL must"):
        check(f"FREQ=DAILY;UNTIL={until}", due_date)


@pytest.mark.parametrize("length", [101, 250_000])
@pytest.mark.parametrize(
    ("head", "piece", "part"),
    [
        ("FREQ=WEEKLY;BYDAY=", "MO,", "BYDAY"),
        ("FREQ=WEEKLY;BYDAY=", "MO", "BYDAY"),
        ("FREQ=WEEKLY;BYDAY=MO,TU,WE,TH,FR,SA,SU", ",MO", "BYDAY"),
        ("", "FREQ=DAILY;", "FREQ"),
        ("FREQ=DAILY;INTERVAL=1", "1", "INTERVAL"),
        ("FREQ=MONTHLY;BYMONTHDAY=", "=", "BYMONTHDAY"),
        ("FREQ=DAILY;UNTIL=20261121T", "0", "UNTIL"),
        ("FREQ=DAILY;", "BYSETPOS", "BYSETPOSBYSETPOSBYSE"),
        ("FREQ=DAILY;", ";", "an empty part"),
        ("FREQ=DAILY;COUNT=1;INTERVAL=1;", "UNTIL=20261121;", "COUNT"),
        ("FREQ=DAILY;", "\ud800", "\\ud800\\ud800\\ud800"),
    ],
)
def test_a_rule_of_any_length_is_refused_by_its_part(
    head: str, piece: str, part: str, length: int
) -> None:
    text = (head + piece * length)[:length]
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(Recurrence).validate_python(text)
    assert part in refused.value.errors()[0]["msg"]
    assert len(refused.value.errors()[0]["msg"]) < 300
