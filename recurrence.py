"""Rules of repeating tasks, a subset of RFC 5545 section 3.3.10, and the next date of one; no I/O.

Dates are reached by arithmetic, never step by step: one that is centuries old costs no more. Days
and times are the canonical texts of `fields.py`, whose three kinds differ in length.
"""

import re
from calendar import monthrange
from datetime import date, datetime, timedelta
from typing import Final

_DAYS: Final = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")
_DAY: Final = f"({'|'.join(_DAYS)})"
# Of each part, of all rules or of those with such a FREQ, what it may say.
_PARTS: Final = {
    ("", "FREQ"): ("DAILY|WEEKLY|MONTHLY|YEARLY", "must be DAILY, WEEKLY, MONTHLY or YEARLY"),
    ("", "INTERVAL"): ("[1-9][0-9]{0,2}", "must be 1 to 999"),
    ("", "COUNT"): ("[1-9][0-9]{0,3}", "must be 1 to 9999"),
    ("", "UNTIL"): ("[0-9]{8}(T(?!24)[0-9]{6}Z?)?", "must be like 20261121 or 20261121T100000(Z)"),
    ("WEEKLY", "BYDAY"): (rf"(?!.*{_DAY}.*\1){_DAY}(,{_DAY})*", "must be days (MO,FR), none twice"),
    ("MONTHLY", "BYDAY"): (f"(-1|[1-4]){_DAY}", "must be one day with 1 to 4 or -1 (2TU)"),
    ("MONTHLY", "BYMONTHDAY"): ("-1|[1-9]|[12][0-9]|3[01]", "must be one day, 1 to 31 or -1"),
}
_UNKNOWN: Final = ("(?!)", "must not be in such a rule; one is FREQ=DAILY;COUNT=10")
_NOT_WITH: Final = {"COUNT": "UNTIL", "BYDAY": "BYMONTHDAY"}
# What is in none of so many months, each as far from the last, is in none: after 400 years the
# calendar comes again.
_MONTHS: Final = 402


def parse(text: str) -> dict[str, str]:
    """Return the parts of a rule, or raise `ValueError`: it names the wrong one.

    What `UNTIL` says is made canonical.
    """
    # Of so many parts one is wrong or comes twice, whatever the last of them holds.
    pairs = [part.partition("=")[::2] for part in text.split(";", len(_PARTS))]
    names, parts = [name for name, _ in pairs], dict(pairs)
    freq = parts.setdefault("FREQ", "")
    for name, value in parts.items():
        pattern, rule = _PARTS.get(("", name)) or _PARTS.get((freq, name), _UNKNOWN)
        if not re.fullmatch(pattern, value[:30]):  # none that is right is as long
            # As ASCII, for it may hold what no answer can.
            raise ValueError(f"{ascii(name[:20])[1:-1] or 'an empty part'} {rule}")
        if names.count(name) > 1:
            raise ValueError(f"{name} must not come twice")
        if (other := _NOT_WITH.get(name)) in parts:
            raise ValueError(f"{name} must not come with {other}")
    if until := parts.get("UNTIL"):
        try:
            moment = datetime.fromisoformat(until.removesuffix("Z")).isoformat()
        except ValueError:
            raise ValueError("UNTIL must be a day and a time that there are") from None
        kinds = {8: moment[:10], 15: moment, 16: moment + ".000000Z"}
        parts["UNTIL"] = kinds[len(until)]
    return parts


def check(text: str, due_date: str | None) -> None:
    """Raise `ValueError` where a task that is due then cannot repeat so."""
    if due_date is None:
        raise ValueError("a task that repeats needs a due_date")
    if len(parse(text).get("UNTIL", due_date)) != len(due_date):
        raise ValueError("UNTIL must be a day, a time or an instant, as due_date is")


def following(
    text: str, due_date: str, remind_at: str | None, repeat_from: str, today: date
) -> tuple[str, str | None, str] | None:
    """Return `due_date`, `remind_at` and the rule of the next task, or None where the series ends.

    It is due at the first date of the rule after `due_date` and after `today`, in UTC;
    `repeat_from` "completed" counts from `today` alone.
    """
    rule, due = parse(text), date.fromisoformat(due_date[:10])
    first = today if repeat_from == "completed" else due
    days = timedelta(_after(rule, first, max(first, today)) - due.toordinal())
    try:
        moved, reminder = _moved(due_date, days), remind_at and _moved(remind_at, days)
    except OverflowError:  # beyond the year 9999
        return None
    count = int(rule.get("COUNT", 0))
    if count == 1 or moved > rule.get("UNTIL", "~"):
        return None
    return moved, reminder, text.replace(f"COUNT={count}", f"COUNT={count - 1}")


def _moved(moment: str, days: timedelta) -> str:
    return (date.fromisoformat(moment[:10]) + days).isoformat() + moment[10:]


def _after(rule: dict[str, str], first: date, floor: date) -> int:
    """Return a rule's first date after `floor`, from `first`, as an ordinal; if none, past 9999."""
    freq, step = rule["FREQ"], int(rule.get("INTERVAL", 1))
    if freq in ("MONTHLY", "YEARLY"):
        step *= 12 if freq == "YEARLY" else 1
        month = _month(first) + (_month(floor) - _month(first)) // step * step
        months = range(month, 12 * (date.max.year + 1), step)[:_MONTHS]
        days = (_in_month(rule, first.day, *divmod(month, 12)) for month in months)
    else:
        start, named = first.toordinal(), [0]
        if freq == "WEEKLY":
            start, step = start - first.weekday(), 7 * step
            by_day = rule.get("BYDAY", _DAYS[first.weekday()])
            named = sorted(_DAYS.index(day) for day in by_day.split(","))
        start = floor.toordinal() - (floor.toordinal() - start) % step
        days = (begin + day for begin in (start, start + step) for day in named)
    return next((day for day in days if day > floor.toordinal()), date.max.toordinal() + 1)


def _month(day: date) -> int:
    """Return which month that is, of all since the year 0."""
    return 12 * day.year + day.month - 1


def _in_month(rule: dict[str, str], usual: int, year: int, month: int) -> int:
    """Return a rule's date in a month, which counts from 0, as an ordinal; 0 where it has none."""
    weekday, length = monthrange(year, month + 1)
    days, place = range(1, length + 1), int(rule.get("BYMONTHDAY", usual))
    if by_day := rule.get("BYDAY"):
        days = range(1 + (_DAYS.index(by_day[-2:]) - weekday) % 7, length + 1, 7)
        place = int(by_day[:-2])
    if place > len(days):
        return 0
    return date(year, month + 1, days[place - 1 if place > 0 else place]).toordinal()
