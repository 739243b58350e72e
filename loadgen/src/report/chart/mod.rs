//! Charts as SVG text: records and figures in, markup out; no script, no file, no font of their own.
//!
//! A chart is drawn in pixels of its own view box. Series differ by colour, by dashes and by their marks'
//! tooltips (`<title>`), so that no figure needs eyes for colour; colours are those of Okabe and Ito
//! (<https://jfly.uni-koeln.de/color/>), and of cividis (Nuñez, Anderton, Renslow 2018) for heat. The
//! classes that are drawn with stand in [`STYLE`].

mod bars;
mod fairness;
mod heat;
mod load;
mod scale;
mod spectrum;
mod timeline;

use maud::{Markup, html};

pub(super) use self::bars::{Bar, bars};
pub(super) use self::fairness::{Fairness, fairness};
pub(super) use self::heat::{Heat, heat};
pub(super) use self::load::{LoadCurve, LoadPoint, is_served, load_curve, load_curves};
pub(super) use self::scale::Scale;
pub(super) use self::spectrum::{Curve, spectrum};
pub(super) use self::timeline::{backlog, percentiles, throughput};

/// The style of every chart, for light and dark; stands in the page, and in a file of charts alone.
pub(super) const STYLE: &str = include_str!("style.css");

/// Series that colours tell apart; dashes tell more of them apart.
const COLOURS: usize = 7;
const DASHES: usize = 4;

/// Pixels that a letter of a chart takes, on average, with some to spare.
const LETTER: f64 = 6.4;

/// Longest name in a legend, in letters; the rest is in its tooltip.
const NAME_LETTERS_MAX: usize = 48;

/// A drawing and its size in pixels.
#[derive(Clone, Debug)]
pub(super) struct Panel {
    /// What is drawn, from (0, 0) on.
    pub(super) body: Markup,
    /// Its width.
    pub(super) width: f64,
    /// Its height.
    pub(super) height: f64,
}

impl Panel {
    /// As an image in a page; `label` says to those who do not see it what it shows.
    pub(super) fn image(self, label: &str) -> Markup {
        let size = format!("0 0 {} {}", px(self.width), px(self.height));
        html! {
            svg class="chart" viewBox=(size) role="img" aria-label=(label) { (self.body) }
        }
    }

    /// Both beside each other.
    pub(super) fn beside(self, other: Panel) -> Panel {
        let at = format!("translate({} 0)", px(self.width));
        Panel {
            width: self.width + other.width,
            height: self.height.max(other.height),
            body: html! { (self.body) g transform=(at) { (other.body) } },
        }
    }

    /// `other` below this.
    pub(super) fn above(self, other: Panel) -> Panel {
        let at = format!("translate(0 {})", px(self.height));
        Panel {
            width: self.width.max(other.width),
            height: self.height + other.height,
            body: html! { (self.body) g transform=(at) { (other.body) } },
        }
    }

    /// With a line of text on top.
    pub(super) fn titled(self, title: &str) -> Panel {
        let height = 30.0;
        let head = Panel {
            width: self.width,
            height,
            body: html! { text class="head" x="12" y="21" { (title) } },
        };
        head.above(self)
    }
}

/// How a series looks: the same number, the same look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look(pub(super) usize);

impl Look {
    fn class(self) -> String {
        format!("s{} d{}", self.0 % COLOURS, self.0 / COLOURS % DASHES)
    }
}

/// One side of a plot.
pub(super) struct Axis {
    /// What it shows, with the unit.
    pub(super) title: &'static str,
    /// Where a value lies.
    pub(super) scale: Scale,
    /// A value as its ticks say it.
    pub(super) label: fn(f64) -> String,
}

/// Two axes and the area between them.
pub(super) struct Plot {
    x: Axis,
    y: Axis,
    width: f64,
    height: f64,
}

impl Plot {
    const LEFT: f64 = 72.0;
    const TOP: f64 = 14.0;
    const RIGHT: f64 = 26.0;
    const BOTTOM: f64 = 46.0;

    /// A plot of this size in pixels, axes included.
    pub(super) fn new(x: Axis, y: Axis, width: f64, height: f64) -> Self {
        Plot { x, y, width, height }
    }

    fn inner_width(&self) -> f64 {
        self.width - Self::LEFT - Self::RIGHT
    }

    fn inner_height(&self) -> f64 {
        self.height - Self::TOP - Self::BOTTOM
    }

    /// Where `value` lies from the left.
    fn at_x(&self, value: f64) -> f64 {
        Self::LEFT + self.x.scale.place(value) * self.inner_width()
    }

    /// Where `value` lies from the top.
    fn at_y(&self, value: f64) -> f64 {
        Self::TOP + (1.0 - self.y.scale.place(value)) * self.inner_height()
    }

    /// The lines of the ticks, their labels and the axes' titles.
    fn grid(&self) -> Markup {
        let (left, right) = (Self::LEFT, self.width - Self::RIGHT);
        let (top, bottom) = (Self::TOP, self.height - Self::BOTTOM);
        let middle = f64::midpoint(left, right);
        let turned = format!("rotate(-90) translate({} 16)", px(-f64::midpoint(top, bottom)));
        html! {
            @for tick in self.x.scale.ticks() {
                @let at = self.at_x(tick.value);
                line class=(tick.class()) x1=(px(at)) x2=(px(at)) y1=(px(top)) y2=(px(bottom)) {}
                @if tick.is_labelled {
                    text class="tick" x=(px(at)) y=(px(bottom + 16.0)) text-anchor="middle" {
                        ((self.x.label)(tick.value))
                    }
                }
            }
            @for tick in self.y.scale.ticks() {
                @let at = self.at_y(tick.value);
                line class=(tick.class()) x1=(px(left)) x2=(px(right)) y1=(px(at)) y2=(px(at)) {}
                @if tick.is_labelled {
                    text class="tick" x=(px(left - 7.0)) y=(px(at + 4.0)) text-anchor="end" {
                        ((self.y.label)(tick.value))
                    }
                }
            }
            path class="axis" d=(format!("M{} {}V{}H{}", px(left), px(top), px(bottom), px(right))) {}
            text class="title" x=(px(middle)) y=(px(bottom + 37.0)) text-anchor="middle" {
                (self.x.title)
            }
            text class="title" transform=(turned) text-anchor="middle" { (self.y.title) }
        }
    }

    /// A line through points of both axes' units.
    fn line(&self, look: Look, points: impl IntoIterator<Item = (f64, f64)>) -> Markup {
        let points: Vec<_> = points.into_iter().collect();
        self.path("line", look, [&points[..]])
    }

    /// A line in parts, with nothing drawn between one and the next.
    fn broken_line<'a>(
        &self,
        look: Look,
        parts: impl IntoIterator<Item = &'a [(f64, f64)]>,
    ) -> Markup {
        self.path("line", look, parts)
    }

    /// A line that stands for less than others do.
    fn line_beyond(&self, look: Look, points: &[(f64, f64)]) -> Markup {
        self.path("line beyond", look, [points])
    }

    fn path<'a>(
        &self,
        class: &str,
        look: Look,
        parts: impl IntoIterator<Item = &'a [(f64, f64)]>,
    ) -> Markup {
        let mut path = String::new();
        for part in parts {
            for (place, (x, y)) in part.iter().enumerate() {
                path.push(if place == 0 { 'M' } else { 'L' });
                path.push_str(&format!("{} {}", px(self.at_x(*x)), px(self.at_y(*y))));
            }
        }
        html! { @if !path.is_empty() { path class=(format!("{class} {}", look.class())) d=(path) {} } }
    }

    /// A point with what it says when it is pointed at.
    fn mark(&self, look: Look, at: (f64, f64), says: &str) -> Markup {
        self.circle(&format!("mark {}", look.class()), at, says)
    }

    /// A point that stands for something that failed.
    fn hollow_mark(&self, look: Look, at: (f64, f64), says: &str) -> Markup {
        self.circle(&format!("mark hollow {}", look.class()), at, says)
    }

    fn circle(&self, class: &str, (x, y): (f64, f64), says: &str) -> Markup {
        let (x, y) = (px(self.at_x(x)), px(self.at_y(y)));
        html! { circle class=(class) cx=(x) cy=(y) r="3" { title { (says) } } }
    }

    /// A line across the plot at a value of the x axis, with a word on it.
    fn upright(&self, x: f64, word: &str, says: &str) -> Markup {
        let at = self.at_x(x);
        let (top, bottom) = (Self::TOP, self.height - Self::BOTTOM);
        // The word stands where there is room for it.
        let is_right = at > self.width - Self::RIGHT - LETTER * word.chars().count() as f64;
        let (anchor, from) = if is_right { ("end", at - 5.0) } else { ("start", at + 5.0) };
        html! {
            g {
                title { (says) }
                line class="upright" x1=(px(at)) x2=(px(at)) y1=(px(top)) y2=(px(bottom)) {}
                text class="word" x=(px(from)) y=(px(top + 12.0)) text-anchor=(anchor) { (word) }
            }
        }
    }

    /// A level across the plot at a value of the y axis.
    fn level(&self, y: f64, says: &str) -> Markup {
        let at = px(self.at_y(y));
        let (left, right) = (px(Self::LEFT), px(self.width - Self::RIGHT));
        html! { line class="level" x1=(left) x2=(right) y1=(at) y2=(at) { title { (says) } } }
    }

    /// Axes below, what is drawn on them above, and the names of the series.
    fn panel(&self, layers: Markup, names: &[(String, Look)]) -> Panel {
        let plot = Panel {
            body: html! { (self.grid()) (layers) },
            width: self.width,
            height: self.height,
        };
        if names.is_empty() { plot } else { plot.above(legend(names, self.width)) }
    }
}

/// The names of series, in as many rows as they need.
fn legend(names: &[(String, Look)], width: f64) -> Panel {
    const SWATCH: f64 = 24.0;
    const ROW: f64 = 18.0;
    let (mut x, mut y) = (Plot::LEFT, 12.0);
    let mut entries = Vec::new();
    for (name, look) in names {
        let short = shortened(name);
        let needs = SWATCH + 24.0 + LETTER * short.chars().count() as f64;
        if x > Plot::LEFT && x + needs > width {
            (x, y) = (Plot::LEFT, y + ROW);
        }
        entries.push((x, y, short, name, look));
        x += needs;
    }
    let body = html! {
        @for (x, y, short, name, look) in entries {
            g {
                title { (name) }
                line class=(format!("line {}", look.class())) x1=(px(x)) x2=(px(x + SWATCH))
                    y1=(px(y - 4.0)) y2=(px(y - 4.0)) {}
                text class="name" x=(px(x + SWATCH + 6.0)) y=(px(y)) { (short) }
            }
        }
    };
    Panel { body, width, height: y + 10.0 }
}

fn shortened(name: &str) -> String {
    if name.chars().count() <= NAME_LETTERS_MAX {
        return name.to_owned();
    }
    let head: String = name.chars().take(NAME_LETTERS_MAX - 1).collect();
    head + "…"
}

/// A length in pixels, to a tenth.
fn px(length: f64) -> String {
    let text = format!("{length:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}
