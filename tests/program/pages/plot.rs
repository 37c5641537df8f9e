//! Draws the admitted requests of each algorithm under one load as `docs/algorithms.svg`: small multiples on the same
//! axes.

use std::fmt::Write;

use tollgate::clock::Timestamp;
use tollgate::limiter::{
    Alignment, Concurrency, FixedWindow, LeaseId, Limit, SlidingCounter, SlidingWindow, TokenBucket,
};
use tollgate::plan::{Check, CounterName, StateCell, advance};

const SECOND: u64 = 1_000_000;
const MINUTE: u64 = 60 * SECOND;

/// The limit of every window and the tokens of every bucket, per minute.
const LIMIT: u32 = 60;

/// The length of the drawing, in seconds.
const LENGTH: u64 = 240;

/// The width of a bar, in seconds.
const BAR: u64 = 5;

/// The largest number of requests on the vertical axis.
const TOP: u64 = 120;

/// The times of all requests, in microseconds: sixty just before a window's boundary, sixty just after it, and later
/// twice the rate of the limit.
fn load() -> Vec<u64> {
    let evenly = |from: u64, to: u64, count: u64| {
        (0..count).map(move |number| from * SECOND + number * (to - from) * SECOND / count)
    };
    evenly(45, 55, 60).chain(evenly(60, 70, 60)).chain(evenly(120, 220, 200)).collect()
}

/// The requests of a load that a limit admits. Only this function uses the library.
fn admitted(limit: Limit, load: &[u64]) -> Vec<u64> {
    // A boundary of windows of a minute, so that the axis begins with one.
    let start = 1_000_000 * MINUTE;
    let check = Check::charge(CounterName::default(), limit, 1);
    let mut held = [StateCell::default()];
    let mut passes = |number: usize, moment: u64| {
        let now = Timestamp::from_micros(start + moment);
        advance(&[check], &mut held, LeaseId(number as u128).into(), now, false).0
    };
    load.iter().enumerate().filter(|&(number, &moment)| passes(number, moment)).map(|(_, &moment)| moment).collect()
}

/// One algorithm with its numbers.
struct Panel {
    name: &'static str,
    numbers: &'static str,
    limit: Limit,
    /// The height of the dashed line.
    bound: u64,
    /// How long a request counts for the line, in seconds.
    counts: u64,
    /// The meaning of the line.
    line: &'static str,
}

fn panels() -> [Panel; 6] {
    let bucket = |burst| Limit::TokenBucket(TokenBucket::new(u64::from(LIMIT), MINUTE, burst, 0).expect("it is small"));
    let panel = |name, numbers, limit| Panel {
        name,
        numbers,
        limit,
        bound: u64::from(LIMIT),
        counts: 60,
        line: "most in any 60 s",
    };
    [
        panel(
            "fixed_window",
            "60 in each minute",
            Limit::FixedWindow(FixedWindow { limit: LIMIT, alignment: Alignment::Epoch(MINUTE) }),
        ),
        panel(
            "sliding_window",
            "60 in any minute",
            Limit::SlidingWindow(SlidingWindow { limit: LIMIT, window: MINUTE }),
        ),
        panel(
            "sliding_counter",
            "about 60 in any minute",
            Limit::SlidingCounter(SlidingCounter { limit: LIMIT, window: MINUTE }),
        ),
        panel("token_bucket", "60 a minute, burst 60 (the default)", bucket(LIMIT)),
        panel("token_bucket", "60 a minute, burst 10", bucket(10)),
        Panel {
            bound: 20,
            counts: 10,
            line: "most in flight",
            ..panel(
                "concurrency",
                "20 at a time, 10 s each",
                Limit::Concurrency(Concurrency { max: 20, lease: 10 * SECOND }),
            )
        },
    ]
}

/// The number of these times within the `length` before `end`.
fn within(moments: &[u64], end: u64, length: u64) -> u64 {
    moments.iter().filter(|&&moment| moment <= end && end < moment + length).count() as u64
}

// The drawing, in pixels.

const LEFT: u64 = 62;
const ABOVE: u64 = 92;
const WIDTH: u64 = 384;
const HEIGHT: u64 = 150;
const ACROSS: u64 = WIDTH + 62;
const DOWN: u64 = HEIGHT + 74;

/// Colours that are legible on white and on black.
const STYLE: &str = "
  text { font-family: system-ui, 'Segoe UI', Helvetica, Arial, sans-serif; font-size: 12px; fill: #737a83 }
  .name { font-size: 14px; font-weight: 600 }
  .right { text-anchor: end }
  .middle { text-anchor: middle }
  .grid { stroke: #737a83; stroke-opacity: 0.25 }
  .axis { stroke: #737a83 }
  .offered { fill: #737a83; fill-opacity: 0.45 }
  .admitted { fill: #2f81f7 }
  .line { fill: none; stroke: #e07b16; stroke-width: 2 }
  .bound { stroke: #d1434b; stroke-width: 1.5; stroke-dasharray: 5 4 }
";

/// The picture.
pub fn svg() -> String {
    let load = load();
    let panels = panels();
    let rows = panels.len().div_ceil(2) as u64;
    let (width, height) = (LEFT + 2 * ACROSS - 44, ABOVE + rows * DOWN - 14);
    let mut svg = String::new();
    let mut draw = |text: String| writeln!(svg, "{text}").expect("a text can be written to");
    draw(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\">"
    ));
    draw("<title>What each algorithm admits of the same requests</title>".to_owned());
    draw(format!("<style>{STYLE}</style>"));
    legend(&mut draw);
    for (number, panel) in panels.iter().enumerate() {
        let (column, row) = (number as u64 % 2, number as u64 / 2);
        draw(format!("<g transform=\"translate({} {})\">", LEFT + column * ACROSS, ABOVE + row * DOWN));
        self::panel(&mut draw, panel, &load, column == 0, row == rows - 1);
        draw("</g>".to_owned());
    }
    draw("</svg>".to_owned());
    svg
}

fn legend(draw: &mut impl FnMut(String)) {
    let marks = [
        (LEFT, "offered in 5 s", "<rect class=\"offered\" x=\"0\" y=\"-9\" width=\"18\" height=\"10\"/>"),
        (LEFT + 140, "admitted in 5 s", "<rect class=\"admitted\" x=\"0\" y=\"-9\" width=\"18\" height=\"10\"/>"),
        (LEFT + 286, "admitted in the last 60 s (concurrency: in flight)", "<path class=\"line\" d=\"M0 -4H18\"/>"),
        (LEFT + 622, "limit", "<path class=\"bound\" d=\"M0 -4H18\"/>"),
    ];
    for (x, text, mark) in marks {
        draw(format!("<g transform=\"translate({x} 24)\">{mark}<text x=\"26\">{text}</text></g>"));
    }
}

fn panel(draw: &mut impl FnMut(String), panel: &Panel, load: &[u64], first: bool, last: bool) {
    let admitted = admitted(panel.limit, load);
    let x = |second: u64| second * WIDTH / LENGTH;
    let y = |requests: u64| HEIGHT - requests.min(TOP) * HEIGHT / TOP;
    let length = panel.counts * SECOND;
    let most = admitted.iter().map(|&moment| within(&admitted, moment, length)).max().unwrap_or(0);

    draw(format!("<text class=\"name\" y=\"-28\">{}</text>", panel.name));
    draw(format!("<text y=\"-11\">{}</text>", panel.numbers));
    draw(format!("<text class=\"right\" x=\"{WIDTH}\" y=\"-11\">{}: {most}</text>", panel.line));
    for requests in (0..=TOP).step_by(30) {
        let y = y(requests);
        draw(format!("<path class=\"grid\" d=\"M0 {y}H{WIDTH}\"/>"));
        draw(format!("<text class=\"right\" x=\"-7\" y=\"{}\">{requests}</text>", y + 4));
    }
    for second in (0..=LENGTH).step_by(60) {
        let x = x(second);
        draw(format!("<path class=\"grid\" d=\"M{x} 0V{HEIGHT}\"/>"));
        draw(format!("<text class=\"middle\" x=\"{x}\" y=\"{}\">{second}</text>", HEIGHT + 17));
    }
    let bar = |class: &str, start: u64, moments: &[u64]| {
        let in_bar = |&&moment: &&u64| (start * SECOND..(start + BAR) * SECOND).contains(&moment);
        let count = moments.iter().filter(in_bar).count() as u64;
        let (left, width) = (x(start) + 1, x(start + BAR) - x(start) - 2);
        let (top, height) = (y(count), HEIGHT - y(count));
        (count > 0).then(|| {
            format!("<rect class=\"{class}\" x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{height}\"/>")
        })
    };
    for start in (0..LENGTH).step_by(BAR as usize) {
        bar("offered", start, load).into_iter().for_each(&mut *draw);
        bar("admitted", start, &admitted).into_iter().for_each(&mut *draw);
    }
    draw(format!("<path class=\"bound\" d=\"M0 {0}H{WIDTH}\"/>", y(panel.bound)));
    let mut line = String::new();
    for second in 0..=LENGTH {
        let count = within(&admitted, second * SECOND, length);
        let step = if second == 0 { "M" } else { "L" };
        // Tenths of a pixel, for a smooth line.
        let (x, y) = (second * WIDTH * 10 / LENGTH, HEIGHT * 10 - count.min(TOP) * HEIGHT * 10 / TOP);
        write!(line, "{step}{}.{} {}.{}", x / 10, x % 10, y / 10, y % 10).expect("a text can be written to");
    }
    draw(format!("<path class=\"line\" d=\"{line}\"/>"));
    draw(format!("<path class=\"axis\" d=\"M0 {HEIGHT}H{WIDTH}\"/>"));
    if first {
        draw(format!("<text class=\"middle\" transform=\"translate(-42 {}) rotate(-90)\">requests</text>", HEIGHT / 2));
    }
    if last {
        draw(format!("<text class=\"middle\" x=\"{}\" y=\"{}\">time, in seconds</text>", WIDTH / 2, HEIGHT + 37));
    }
}
