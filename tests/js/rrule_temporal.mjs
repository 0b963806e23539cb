// Reads [[start, rule, after], …] in UTC and writes the first date of each rule after that, or null.
import { readFileSync } from "node:fs";
import { RRuleTemporal } from "rrule-temporal";

const cases = JSON.parse(readFileSync(0, "utf8"));
const basic = (moment) => moment.replace(/[-:]/g, "");
const next = ([start, rule, after]) => {
  const rruleString = `DTSTART:${basic(start)}\nRRULE:${rule}`;
  try {
    const found = new RRuleTemporal({ rruleString, maxIterations: 1e6 }).next(new Date(after));
    return found && new Date(Number(found.epochMilliseconds)).toISOString();
  } catch (error) {
    if (error.message === "Out-of-bounds date") return null; // sought beyond all that Temporal holds
    throw error;
  }
};
console.log(JSON.stringify(cases.map(next)));
