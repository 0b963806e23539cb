"""Rules of repeating tasks, a subset of RFC 5545 section 3.3.10, and the next date of one; no I/O.

Dates are reached by arithmetic, never step by step: one that is centuries old costs no more. Days
and times are the canonical texts of `fields.py`, whose three kinds differ in length.
"""

import re
from calendar import monthrange
from datetime import date, datetime, timedelta
from typing import Final

MAX_LENGTH: Final = 100  # of a rule; one that says nothing twice has 75 characters at most
_DAYS: Final = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")
_DAY: Final = f"({'|'.join(_DAYS)})"
# Of each part, what it may say.
_PARTS: Final = {
    "FREQ": ("DAILY|WEEKLY|MONTHLY|YEARLY", "must be DAILY, WEEKLY, MONTHLY or YEARLY"),
    "INTERVAL": ("[1-9][0-9]{0,2}", "must be 1 to 999"),
    "COUNT": ("[1-9][0-9]{0,3}", "must be 1 to 9999"),
    "UNTIL": ("[0-9]{8}(T(?!24)[0-9]{6}Z?)?", "must be like 20261121, 20261121T100000 or with a Z"),
}
_WEEKLY: Final = (rf"(?!.*{_DAY}.*\1){_DAY}(,{_DAY})*", "must be days (MO,FR), none twice")
_MONTHLY: Final = (f"(-1|[1-4]){_DAY}", "must be one day with 1 to 4 or -1 (2TU), with MONTHLY")
_MONTH_DAY: Final = ("-1|[1-9]|[12][0-9]|3[01]", "must be one day, 1 to 31 or -1 for the last")
_ALSO: Final = {
    "WEEKLY": {"BYDAY": _WEEKLY},
    "MONTHLY": {"BYDAY": _MONTHLY, "BYMONTHDAY": _MONTH_DAY},
}
_EITHER: Final = (("COUNT", "UNTIL"), ("BYDAY", "BYMONTHDAY"))
# What is in none of so many months, each as far from the last, is in none: after 400 years the
# calendar comes again.
_MONTHS: Final = 400


def parse(text: str) -> dict[str, str]:
    """Return the parts of a rule that is not long, or raise `ValueError`: it names the wrong one.

    What `UNTIL` says is made canonical.
    """
    pairs = [(name, value) for name, _, value in (part.partition("=") for part in text.split(";"))]
    parts, names = dict(pairs), [name for name, _ in pairs]
    known = _PARTS | _ALSO.get(parts.get("FREQ", ""), {})
    for name, value in [*pairs, ("FREQ", parts.get("FREQ", ""))]:
        pattern, rule = known.get(name, ("(?!)", "must not be in such a rule"))
        if not re.fullmatch(pattern, value):
            raise ValueError(f"{name or 'an empty part'} {rule}")
        if names.count(name) > 1:
            raise ValueError(f"{name} must not come twice")
    for one, other in _EITHER:
        if {one, other} <= parts.keys():
            raise ValueError(f"{one} must not come with {other}")
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
        raise ValueError("needs a due_date")
    if len(parse(text).get("UNTIL", due_date)) != len(due_date):
        raise ValueError("UNTIL must be a day, a time or an instant, as due_date is")


def following(
    text: str, due_date: str, remind_at: str | None, repeat_from: str, today: date
) -> tuple[str, str | None, str] | None:
    """Return `due_date`, `remind_at` and the rule of the next task, or None where the series ends.

    It is due at the first date of the rule after `due_date` and after `today`, in UTC;
    `repeat_from` "completed" counts from `today` alone.
    """
    rule = parse(text)
    due = date.fromisoformat(due_date[:10])
    first = today if repeat_from == "completed" else due
    days = timedelta(_after(rule, first, max(first, today).toordinal()) - due.toordinal())
    try:
        moved, reminder = _moved(due_date, days), remind_at and _moved(remind_at, days)
    except OverflowError:  # beyond the year 9999
        return None
    if rule.get("COUNT") == "1" or moved > rule.get("UNTIL", "~"):
        return None
    return moved, reminder, re.sub("COUNT=([0-9]+)", lambda it: f"COUNT={int(it[1]) - 1}", text)


def _moved(moment: str, days: timedelta) -> str:
    return (date.fromisoformat(moment[:10]) + days).isoformat() + moment[10:]


def _after(rule: dict[str, str], first: date, floor: int) -> int:
    """Return the first date of a rule after `floor`, counted from `first`, both as ordinals; one
    beyond the year 9999 where there is none.
    """
    freq, step, start = rule["FREQ"], int(rule.get("INTERVAL", 1)), first.toordinal()
    if freq == "DAILY":
        return floor + step - (floor - start) % step
    if freq == "WEEKLY":
        monday = start - first.weekday()
        week = floor - monday - (floor - monday) % (7 * step)
        named = [_DAYS.index(day) for day in re.findall(_DAY, rule.get("BYDAY", ""))]
        offsets = [week + day for day in sorted(named) or [first.weekday()]]
        ahead = [*offsets, *(day + 7 * step for day in offsets)]
        return next(monday + day for day in ahead if monday + day > floor)
    step *= 12 if freq == "YEARLY" else 1
    reached, month = date.fromordinal(floor), 12 * first.year + first.month - 1
    month += (12 * reached.year + reached.month - 1 - month) // step * step
    end = min(month + (_MONTHS + 2) * step, 12 * (date.max.year + 1))
    dates = (_in_month(rule, first.day, *divmod(each, 12)) for each in range(month, end, step))
    return next((day for day in dates if day > floor), date.max.toordinal() + 1)


def _in_month(rule: dict[str, str], usual: int, year: int, month: int) -> int:
    """Return a rule's date in a month, which counts from 0; 0 where it has none."""
    weekday, length = monthrange(year, month + 1)
    day = int(rule.get("BYMONTHDAY", usual))
    if by_day := rule.get("BYDAY"):
        day = 1 + (_DAYS.index(by_day[-2:]) - weekday) % 7 + 7 * (int(by_day[:-2]) - 1)
        if day < 1:  # the last: that day of the first week, four or, if there is one, five later
            day += 42 if day + 42 <= length else 35
    elif day < 0:
        day = length
    return date(year, month + 1, day).toordinal() if day <= length else 0
