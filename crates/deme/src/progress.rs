//! Progress on the terminal: a bar where there is one, plain lines where there is none.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How much to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Voice {
    /// Bars or lines on standard error.
    Normal,
    /// Nothing.
    Quiet,
}

/// Plain lines come this often, so that a log stays readable.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// The progress of one stage.
pub struct Progress {
    kind: Kind,
    name: String,
    total: u64,
    start: Instant,
    resumed_at: Option<u64>,
}

enum Kind {
    Quiet,
    Bar(ProgressBar),
    Lines { last: Instant },
}

impl Progress {
    /// Starts the progress of a stage of `total` steps (0: unknown).
    pub fn start(voice: Voice, name: &str, total: u64) -> Self {
        let now = Instant::now();
        let kind = match voice {
            Voice::Quiet => Kind::Quiet,
            Voice::Normal if std::io::stderr().is_terminal() => {
                let bar = ProgressBar::new(total);
                let style = "{prefix:<20} [{bar:30}] {pos}/{len}  {per_sec}  {msg}  {eta} left";
                let style = ProgressStyle::with_template(style).expect("a valid template");
                bar.set_style(style.progress_chars("=> "));
                bar.set_prefix(name.to_owned());
                Kind::Bar(bar)
            }
            Voice::Normal => Kind::Lines { last: now },
        };
        Self { kind, name: name.to_owned(), total, start: now, resumed_at: None }
    }

    /// Says where the stage is; `detail` is the loss or the like.
    pub fn at(&mut self, position: u64, detail: &str) {
        let resumed_at = *self.resumed_at.get_or_insert(position.saturating_sub(1));
        match &mut self.kind {
            Kind::Quiet => {}
            Kind::Bar(bar) => {
                bar.set_position(position);
                bar.set_message(detail.to_owned());
            }
            Kind::Lines { last } if last.elapsed() >= LINE_INTERVAL => {
                *last = Instant::now();
                let elapsed = self.start.elapsed().as_secs_f64();
                let done = position.saturating_sub(resumed_at) as f64;
                let rate = done / elapsed.max(1e-9);
                let left = self.total.saturating_sub(position) as f64 / rate.max(1e-9);
                let name = &self.name;
                let total = self.total;
                say(&format!(
                    "{name}: {position}/{total}  {rate:.1}/s  {detail}  {} left",
                    readable_secs(left)
                ));
            }
            Kind::Lines { .. } => {}
        }
    }

    /// Ends the stage with one line.
    pub fn finish(self, outcome: &str) {
        let elapsed = readable_secs(self.start.elapsed().as_secs_f64());
        let line = format!("{:<20} done in {elapsed}  {outcome}", self.name);
        match self.kind {
            Kind::Quiet => {}
            Kind::Bar(bar) => {
                bar.finish_and_clear();
                say(&line);
            }
            Kind::Lines { .. } => say(&line),
        }
    }
}

/// One line on standard error; a closed standard error is not worth failing for.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{}", line.trim_end());
}

/// `3m 20s`, `1h 05m`, `4.2s`.
pub fn readable_secs(secs: f64) -> String {
    let whole = secs.round() as u64;
    match whole {
        _ if secs < 10.0 => format!("{secs:.1}s"),
        0..60 => format!("{whole}s"),
        60..3600 => format!("{}m {:02}s", whole / 60, whole % 60),
        _ => format!("{}h {:02}m", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_readable() {
        let readable = [4.2, 42.0, 200.0, 3900.0].map(readable_secs);
        assert_eq!(readable, ["4.2s", "42s", "3m 20s", "1h 05m"]);
    }
}
