//! Bars: one figure of several servers, the largest first.

use maud::{Markup, html};

use super::{LETTER, Look, Panel, px};

/// One server's figure.
#[derive(Clone, Debug)]
pub(in super::super) struct Bar {
    /// Whose it is.
    pub(in super::super) name: String,
    /// The figure, from 0 on.
    pub(in super::super) value: f64,
    /// The figure as it is read.
    pub(in super::super) label: String,
    /// Its colour.
    pub(in super::super) look: Look,
}

const ROW: f64 = 18.0;
const THICK: f64 = 12.0;
const TOP: f64 = 6.0;

/// A bar for each, in order of their figures; `width` in pixels, names and figures included.
pub(in super::super) fn bars(bars: &[Bar], width: f64) -> Panel {
    let mut bars: Vec<_> = bars.iter().collect();
    bars.sort_by(|one, other| other.value.total_cmp(&one.value));
    let letters = |text: fn(&Bar) -> &str| {
        let most = bars.iter().map(|bar| text(bar).chars().count()).max();
        LETTER * most.unwrap_or(0) as f64
    };
    let left = letters(|bar| &bar.name) + 19.0;
    let room = (width - left - letters(|bar| &bar.label) - 12.0).max(1.0);
    let most = bars.first().map_or(1.0, |bar| bar.value).max(f64::MIN_POSITIVE);
    let row = |(place, bar): (usize, &&Bar)| -> Markup {
        let y = TOP + ROW * place as f64;
        let long = (room * bar.value / most).max(1.0);
        let says = format!("{}: {}", bar.name, bar.label);
        html! {
            text class="name" x=(px(left - 7.0)) y=(px(y + THICK - 2.0)) text-anchor="end" { (bar.name) }
            rect class=(format!("mark {}", bar.look.class())) x=(px(left)) y=(px(y)) width=(px(long))
                height=(px(THICK)) { title { (says) } }
            text class="tick" x=(px(left + long + 5.0)) y=(px(y + THICK - 2.0)) { (bar.label) }
        }
    };
    let rows: Vec<_> = bars.iter().enumerate().map(row).collect();
    Panel {
        height: 2.0 * TOP + ROW * rows.len() as f64,
        width,
        body: html! { @for row in rows { (row) } },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_bar_is_the_largest_figure_and_stands_first() {
        let bar = |name: &str, value| Bar {
            name: name.to_owned(),
            value,
            label: format!("{value} k"),
            look: Look(0),
        };
        let panel = bars(&[bar("slow", 25.0), bar("fast", 100.0), bar("none", 0.0)], 400.0);
        let text = panel.body.into_string();
        let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("no {what} in {text}"));
        assert!(at(">fast<") < at(">slow<") && at(">slow<") < at(">none<"));
        let widths: Vec<f64> = text
            .split("width=\"")
            .skip(1)
            .map(|rest| rest.split('"').next().unwrap().parse().unwrap())
            .collect();
        assert!((widths[0] / widths[1] - 4.0).abs() < 0.01, "{widths:?}");
        assert_eq!(widths[2], 1.0, "a figure of nothing is seen, too");
    }
}
