//! A suite in short, for a README: two tables and one picture.
//!
//! In: what a suite compared. Out: Markdown with a row for each server, and SVG with bars for each load.
//! Both say what the report says, and nothing else: medians, and the same marks.

use std::fmt::Write;

use maud::PreEscaped;

use super::chart::{Bar, Look, Panel, bars};
use super::comparison::{Compared, Comparison, Contender, DASH, OVERLOADED, marks, time, times};
use super::markdown::in_a_cell;
use super::svg::file;
use crate::units::Count;

/// Pixels of one load's bars; the picture is twice as wide.
const WIDTH: f64 = 520.0;

impl Comparison {
    /// Tables with a row for each server that ran: messages or bytes per server CPU-second in closed loops,
    /// as multiples of the baseline, and the percentiles of R in open loops.
    pub fn summary(&self) -> String {
        let mut text = String::new();
        let (open, closed): (Vec<_>, Vec<_>) =
            self.scenarios.iter().partition(|scenario| scenario.open_loop);
        if !closed.is_empty() {
            let baseline = &self.baseline;
            let head = format!("per server CPU-second, in multiples of {baseline}'s");
            self.write_summary(&mut text, &head, &closed, |scenario, server| {
                per_cpu(scenario, server, baseline)
            });
        }
        if !open.is_empty() {
            let head = "R p50 / p99";
            self.write_summary(&mut text, head, &open, |_, server| response_times(server));
        }
        self.legends().for_each(|legend| text.push_str(&format!("{legend}\n\n")));
        let mut all = self.scenarios.iter().flat_map(|scenario| &scenario.servers);
        if all.any(Contender::is_unknown) {
            text.push_str(
                "A cell that is only a dash has no run that counts; REPORT.md says why.\n\n",
            );
        }
        text.truncate(text.trim_end().len());
        text + "\n"
    }

    fn write_summary(
        &self,
        text: &mut String,
        head: &str,
        scenarios: &[&Compared],
        cell: impl Fn(&Compared, &Contender) -> String,
    ) {
        let short = |scenario: &&Compared| in_a_cell(&scenario.load.replace(" streams", ""));
        let loads: Vec<_> = scenarios.iter().map(short).collect();
        let columns = "---|".repeat(loads.len());
        writeln!(text, "| {head} | {} |\n|---|{columns}", loads.join(" | "))
            .expect("a String takes whatever is written");
        for (place, server) in scenarios[0].servers.iter().enumerate() {
            let has_run = |scenario: &&&Compared| !scenario.servers[place].runs.is_empty();
            if !scenarios.iter().any(|scenario| has_run(&scenario)) {
                continue;
            }
            let cells: Vec<_> =
                scenarios.iter().map(|scenario| cell(scenario, &scenario.servers[place])).collect();
            text.push_str(&format!("| {} | {} |\n", server.name, cells.join(" | ")));
        }
        text.push('\n');
    }

    /// Bars of messages or bytes per server CPU-second, one block for each closed loop.
    pub fn picture(&self) -> String {
        let blocks: Vec<_> = self
            .scenarios
            .iter()
            .filter(|scenario| !scenario.open_loop)
            .map(|scenario| self.block(scenario))
            .collect();
        let rows = blocks.chunks(2).map(|row| match row {
            [left, right] => left.clone().beside(right.clone()),
            _ => row[0].clone(),
        });
        let nothing = Panel { body: PreEscaped(String::new()), width: 2.0 * WIDTH, height: 0.0 };
        let panel = rows.reduce(Panel::above).unwrap_or(nothing);
        file(panel, "Messages or bytes per server CPU-second")
    }

    fn block(&self, scenario: &Compared) -> Panel {
        let bar = |server: &Contender| {
            let value = server.per_cpu()?.median;
            let look = match &server.name {
                name if Some(name) == self.subject.as_ref() => Look(1),
                name if *name == self.baseline => Look(6),
                _ => Look(0),
            };
            let label = format!("{}{}{}", Count(value), scenario.figure.unit(), server.marks());
            Some(Bar { name: server.name.clone(), value, label, look })
        };
        let all: Vec<_> = scenario.servers.iter().filter_map(bar).collect();
        let title = format!("{}: {}", scenario.load, scenario.figure.name());
        bars(&all, WIDTH).titled(&title)
    }
}

fn per_cpu(scenario: &Compared, server: &Contender, baseline: &str) -> String {
    let figure = match server.name == baseline {
        true => server
            .per_cpu()
            .map(|spread| format!("1x: {}{}", Count(spread.median), scenario.figure.unit())),
        false => server
            .ratio(scenario.server(baseline), |run| Some(run.per_server_cpu_s))
            .map(|ratio| times(ratio.median)),
    };
    let marks = marks([Some(server), scenario.server(baseline)]);
    figure.map_or(DASH.to_owned(), |figure| format!("{figure}{marks}"))
}

fn response_times(server: &Contender) -> String {
    let Some(p50) = server.p50() else {
        return if server.is_overloaded() { OVERLOADED } else { DASH }.to_owned();
    };
    let p99 = server.p99().map_or(DASH.to_owned(), |p99| time(p99.median));
    format!("{} / {p99}{}", time(p50.median), server.marks())
}

#[cfg(test)]
mod tests {
    use crate::report::comparison::Outcome;
    use crate::report::comparison::tests::{beside_others, bound, counted, suite};

    #[test]
    fn a_summary_has_a_row_for_each_server_that_ran() {
        let comparison = suite(vec![
            ("stock", vec![counted(1e5), counted(2e5)]),
            ("ours", vec![counted(2e6), counted(4e6)]),
            ("limit", vec![bound(4e6), bound(8e6)]),
            ("peer", vec![]),
        ]);
        let text = comparison.summary();
        for line in [
            "| per server CPU-second, in multiples of stock's | 1 connection |",
            "| stock | 1x: 150 k |",
            "| ours | 20x |",
            "| limit | 40x † |",
        ] {
            assert!(text.lines().any(|it| it == line), "{line:?} is not in\n{text}");
        }
        assert!(!text.contains("peer"), "{text}");
        assert!(text.contains("† loadgen's core was full"), "{text}");
    }

    #[test]
    fn open_loops_tell_response_times_in_a_table_of_their_own() {
        let mut comparison = suite(vec![("stock", vec![counted(1e5)]), ("ours", vec![])]);
        comparison.scenarios[0].open_loop = true;
        let text = comparison.summary();
        assert_eq!(text, "| R p50 / p99 | 1 connection |\n|---|---|\n| stock | 50 µs / - |\n");
        comparison.scenarios[0].servers[0].knee_is_open = true;
        let text = comparison.summary();
        assert!(text.contains("| stock | 50 µs / - ‡ |\n\n‡ the rate is a share"), "{text}");
        assert!(!comparison.picture().contains("<rect class=\"mark"), "nothing to draw");
        comparison.scenarios[0].servers[0].runs.push(beside_others(1e5));
        let text = comparison.summary();
        assert!(
            text.contains("| stock | 50 µs / - ‡‖ |") && text.contains("\n‖ other programs"),
            "{text}"
        );
        let behind = || Outcome::Overloaded("backlog: +9 messages each second".to_owned());
        comparison.scenarios[0].servers[1].runs = vec![behind(), behind()];
        assert!(comparison.summary().contains("| ours | overloaded |"));
        comparison.scenarios[0].servers[1].runs.push(counted(1e5));
        let text = comparison.summary();
        assert!(text.contains("| ours | 50 µs / - ¶ |"), "{text}");
        assert!(text.contains("¶ in some of its runs") && !text.contains("only a dash"), "{text}");
        let invalid = || Outcome::Invalid("steal".to_owned());
        comparison.scenarios[0].servers[1].runs = vec![invalid(), invalid()];
        let text = comparison.summary();
        assert!(text.contains("| ours | - |") && text.contains("only a dash"), "{text}");
        // Of two that count one was the machine's fault, which is no choice of the server's.
        comparison.scenarios[0].servers[1].runs = vec![invalid(), counted(1e5)];
        assert!(comparison.summary().contains("| ours | 50 µs / - |"), "{text}");
    }

    #[test]
    fn a_picture_has_a_bar_for_each_server_that_ran() {
        let picture = suite(vec![
            ("stock", vec![counted(1e5)]),
            ("ours", vec![counted(2e6)]),
            ("limit", vec![bound(4e6)]),
            ("peer", vec![]),
        ])
        .picture();
        assert_eq!(picture.matches("<rect class=\"mark").count(), 3);
        assert!(picture.contains(">4 M †<"), "{picture}");
        assert!(picture.contains(">1 connection: messages per server CPU-second<"), "{picture}");
    }
}
