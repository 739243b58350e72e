//! The figures of records as one SVG file: for `results/`, and for papers.
//!
//! In: records. Out: a percentile spectrum beside the throughput over time, with a line for each record;
//! runs of different load models never share an axis, so each model has a row of its own. The file
//! holds its own style, light and dark, and needs no other.

use maud::{PreEscaped, html};

use super::chart::{Curve, Panel, STYLE, spectrum, throughput};
use super::loads;
use crate::record::{RunRecord, Timing};

/// Pixels of one of the two plots; a figure is twice as wide.
const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 340.0;

/// The figure of all records. `records` is not empty.
pub fn svg(records: &[(String, RunRecord)]) -> String {
    let panel = loads(records)
        .into_iter()
        .map(|(load, runs)| row(load.name(), &runs))
        .reduce(Panel::above)
        .unwrap_or(Panel { body: PreEscaped(String::new()), width: WIDTH, height: HEIGHT });
    let names: Vec<_> = records.iter().map(|(name, _)| name.as_str()).collect();
    let names = names.join(", ");
    let about = "Percentile spectrum (dashed: fewer than 10 values of that run lie beyond) and throughput over time";
    file(panel, &format!("{about} of {names}"))
}

/// A file of one panel; `about` says what it shows.
pub(super) fn file(panel: Panel, about: &str) -> String {
    let (width, height) = (panel.width, panel.height);
    let size = format!("0 0 {width:.0} {height:.0}");
    let figure = html! {
        svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox=(size)
            width=(format!("{width:.0}")) height=(format!("{height:.0}")) role="img" {
            title { (about) }
            style { (PreEscaped(STYLE)) }
            rect width="100%" height="100%" fill="var(--back)" {}
            (panel.body)
        }
    };
    figure.into_string() + "\n"
}

fn row(load: &str, runs: &[(String, &RunRecord)]) -> Panel {
    let curves: Vec<_> = runs
        .iter()
        .filter_map(|(name, run)| {
            let timing = Timing::headline(&run.measured);
            let (hdr, missing) = (timing.of(&run.measured)?, timing.missing(&run.measured));
            Some(Curve { name: name.clone(), hdr, missing })
        })
        .collect();
    spectrum(&curves, WIDTH, HEIGHT).beside(throughput(runs, WIDTH, HEIGHT)).titled(load)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{GateName, Verdict};
    use crate::report::example;

    #[test]
    fn each_load_model_has_a_row_and_each_record_a_line_in_both_plots() {
        let records = [
            ("open-a".to_owned(), example::open_loop(2_000.0, 1)),
            ("closed".to_owned(), example::closed_loop()),
            ("open-b".to_owned(), example::open_loop(4_000.0, 2)),
        ];
        let text = svg(&records);
        assert_eq!(text.matches("percentile (%)").count(), 2);
        assert_eq!(text.matches("<path class=\"line s0 d0\"").count(), 4);
        assert_eq!(text.matches("<path class=\"line s1 d0\"").count(), 2);
        assert!(text.contains("closed loop: service time S"), "{text}");
    }

    #[test]
    fn an_invalid_run_says_so_beside_its_line() {
        let mut record = example::closed_loop();
        record.gates.push(example::gate(GateName::Steal, Verdict::Failed, Some(1.0), "share"));
        assert!(svg(&[("run".to_owned(), record)]).contains(">run (INVALID)</text>"));
    }

    #[test]
    fn a_figure_is_well_formed_whatever_a_run_is_called() {
        let name = "a<b & \"c\"".to_owned();
        let text = svg(&[(name, example::closed_loop())]);
        assert!(!text.contains("a<b") && text.contains("a&lt;b &amp; &quot;c&quot;"));
        assert!(text.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\""));
    }
}
