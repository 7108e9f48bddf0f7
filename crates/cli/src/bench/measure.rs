//! Runs a part of a model again and again and tells what was measured.
//!
//! Seconds are of the wall; the report has the median and both ends. The peak is what loops in registers reach, measured
//! before each run; the seconds at the peak are those that the products alone would take there: linear layers in the
//! arithmetic asked for, attention and convolutions in bf16 (in f32 if that was asked for).

use std::{
    io::{BufRead, Write},
    path::Path,
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tensor::{
    Backend, Precision, Tensor,
    cpu::{Cpu, Level},
    dry_run::{DryRun, Work},
};

use super::{
    Runs, arrays,
    timed::{Stages, Timed},
};
use crate::readable::bytes;

/// A part that is ready to run on some backend.
pub(super) type Run = Box<dyn Fn() -> flux::Result<Tensor>>;

/// What is measured.
pub(super) struct Subject<'a> {
    /// `step`, `vae`, `t5`.
    pub(super) what: &'static str,
    /// A line for people.
    pub(super) title: String,
    /// The same for programs.
    pub(super) facts: Value,
    /// Loads the part onto a backend.
    pub(super) prepare: &'a dyn Fn(&Arc<dyn Backend>) -> Result<Run>,
    /// The shape under which a result is saved, of the same elements; and its axes in another order, if they are.
    pub(super) saved: &'a dyn Fn(&Tensor) -> Tensor,
}

/// Measures and reports.
pub(super) fn measure(args: &Runs, subject: &Subject<'_>) -> Result<()> {
    let work = work(subject)?;
    let threads = args.threads.map(usize::from);
    let cpu = Cpu::new(threads);
    let backend: Arc<dyn Backend> = cpu.clone();
    let run = (subject.prepare)(&backend)?;

    let start = Instant::now();
    let result = run()?;
    let warm_up = start.elapsed().as_secs_f64();
    if let Some(path) = &args.save {
        save(path, &(subject.saved)(&result))?;
    }
    drop(result);

    let mut peaks = Peaks::new(args.precision);
    let mut seconds = Vec::new();
    let mut once = || -> Result<f64> {
        peaks.measure(&cpu);
        let start = Instant::now();
        run()?;
        let spent = start.elapsed().as_secs_f64();
        seconds.push(spent);
        Ok(spent)
    };
    if args.paced {
        say(&json!({"ready": true, "warm_up_seconds": warm_up}))?;
        for line in std::io::stdin().lock().lines() {
            line.context("standard input")?;
            say(&json!({"seconds": once()?, "peak_rss_bytes": peak_rss()}))?;
        }
    } else {
        for _ in 0..args.runs {
            once()?;
        }
    }
    let measured = Measured {
        precision: args.precision,
        threads: threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get)),
        warm_up,
        seconds,
        work,
        peaks,
        peak_rss: peak_rss(),
        stages: if args.stages { Some(stages(subject, backend)?) } else { None },
    };
    if args.paced {
        return say(&measured.json(subject));
    }
    if args.json {
        writeln!(std::io::stdout(), "{:#}", measured.json(subject))?;
    } else {
        measured.print(subject)?;
    }
    Ok(())
}

/// A line for the program on the other side, at once.
fn say(value: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}")?;
    out.flush()?;
    Ok(())
}

fn save(path: &Path, result: &Tensor) -> Result<()> {
    arrays::save(path, result.shape().dims(), &result.to_vec())
}

/// What one run computes, counted by running it without its weights.
fn work(subject: &Subject<'_>) -> Result<Work> {
    let counter = DryRun::new();
    let backend: Arc<dyn Backend> = counter.clone();
    let run = (subject.prepare)(&backend)?;
    counter.reset();
    run()?;
    Ok(counter.report())
}

/// Where the time of a run goes. The part is loaded anew, so it is warmed up anew.
fn stages(subject: &Subject<'_>, backend: Arc<dyn Backend>) -> Result<Stages> {
    let timed = Timed::new(backend);
    let run = (subject.prepare)(&timed.backend)?;
    run()?;
    timed.take();
    run()?;
    Ok(timed.take())
}

/// The machine's peaks, FLOP/s, measured again before each run.
struct Peaks(Vec<(Precision, Vec<f64>)>);

impl Peaks {
    fn new(precision: Precision) -> Self {
        let mut all = vec![precision];
        if precision == Precision::Int8 {
            all.push(Precision::BF16); // attention and convolutions
        }
        Self(all.into_iter().map(|precision| (precision, Vec::new())).collect())
    }

    fn measure(&mut self, cpu: &Cpu) {
        for (precision, rates) in &mut self.0 {
            let start = Instant::now();
            let flop = cpu.run_at_peak(*precision);
            rates.push(flop / start.elapsed().as_secs_f64());
        }
    }

    /// Of linear layers, and of all other products.
    fn rates(&self) -> Option<[f64; 2]> {
        let rate = |(_, rates): &(_, Vec<f64>)| median(rates);
        Some([rate(self.0.first()?)?, rate(self.0.last()?)?])
    }
}

/// The middle one of some numbers, the mean of the middle two.
pub(super) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let high = *sorted.get(sorted.len() / 2)?;
    Some(if sorted.len().is_multiple_of(2) { f64::midpoint(sorted[sorted.len() / 2 - 1], high) } else { high })
}

/// The most memory this process had at one time, mapped files included, where the system tells.
pub(super) fn peak_rss() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// What was measured.
struct Measured {
    precision: Precision,
    threads: usize,
    warm_up: f64,
    seconds: Vec<f64>,
    work: Work,
    peaks: Peaks,
    peak_rss: Option<u64>,
    stages: Option<Stages>,
}

impl Measured {
    fn lowest(&self) -> Option<f64> {
        self.seconds.iter().copied().min_by(f64::total_cmp)
    }

    fn highest(&self) -> Option<f64> {
        self.seconds.iter().copied().max_by(f64::total_cmp)
    }

    /// Seconds that the products alone would take at the peak.
    fn at_peak(&self) -> Option<f64> {
        let [linear, other] = self.peaks.rates()?;
        Some(self.work.linear_flop as f64 / linear + (self.work.attention_flop + self.work.conv_flop) as f64 / other)
    }

    /// FLOP of all products.
    fn products(&self) -> f64 {
        (self.work.linear_flop + self.work.attention_flop + self.work.conv_flop) as f64
    }

    fn json(&self, subject: &Subject<'_>) -> Value {
        let middle = median(&self.seconds);
        let mut report = json!({
            "bench": subject.what,
            "precision": self.precision.to_string(),
            "threads": self.threads,
            "vectors": level(),
            "warm_up_seconds": self.warm_up,
            "seconds": self.seconds,
            "median_seconds": middle,
            "min_seconds": self.lowest(),
            "max_seconds": self.highest(),
            "gflop": giga(self.work.flop()),
            "linear_gflop": giga(self.work.linear_flop),
            "attention_gflop": giga(self.work.attention_flop),
            "conv_gflop": giga(self.work.conv_flop),
            "other_gflop": giga(self.work.other_flop),
            "gflop_per_second": middle.map(|s| self.products() / s / 1e9),
            "peak_gflop_per_second": self.peaks.0.iter().map(|(precision, rates)| {
                (precision.to_string(), json!(median(rates).map(|rate| rate / 1e9)))
            }).collect::<serde_json::Map<_, _>>(),
            "seconds_at_peak": self.at_peak(),
            "share_of_peak": self.at_peak().zip(middle).map(|(peak, s)| peak / s),
            "peak_rss_bytes": self.peak_rss,
        });
        if let Some(stages) = self.stages {
            report["stages_seconds"] = json!({
                "linear": stages.linear, "attention": stages.attention, "conv": stages.conv, "other": stages.other,
            });
        }
        if let (Value::Object(report), Value::Object(facts)) = (&mut report, &subject.facts) {
            report.extend(facts.clone());
        }
        report
    }

    fn print(&self, subject: &Subject<'_>) -> Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", subject.title)?;
        let threads = if self.threads == 1 { "1 thread".into() } else { format!("{} threads", self.threads) };
        writeln!(out, "{}, {threads}, {}", self.precision, level())?;
        writeln!(out)?;
        writeln!(out, "warm-up     {}", duration(self.warm_up))?;
        for (i, seconds) in self.seconds.iter().enumerate() {
            writeln!(out, "run {:<8}{}", i + 1, duration(*seconds))?;
        }
        let (Some(middle), Some(low), Some(high)) = (median(&self.seconds), self.lowest(), self.highest()) else {
            return Ok(());
        };
        writeln!(out)?;
        writeln!(out, "median      {} ({} … {})", duration(middle), duration(low), duration(high))?;
        let Work { linear_flop, attention_flop, conv_flop, .. } = self.work;
        let kinds = [("linear", linear_flop), ("attention", attention_flop), ("convolution", conv_flop)];
        let kinds = kinds.iter().filter(|(_, flop)| *flop > 0);
        let kinds: Vec<String> = kinds.map(|(name, flop)| format!("{name} {:.1}", giga(*flop))).collect();
        writeln!(out, "work        {:.1} GFLOP ({})", giga(self.work.flop()), kinds.join(", "))?;
        writeln!(out, "rate        {:.1} GFLOP/s", self.products() / middle / 1e9)?;
        if let Some(at_peak) = self.at_peak() {
            let rates = self.peaks.0.iter().filter_map(|(p, rates)| Some(format!("{p} {:.0}", median(rates)? / 1e9)));
            let rates: Vec<String> = rates.collect();
            writeln!(out, "at the peak {} ({} GFLOP/s)", duration(at_peak), rates.join(", "))?;
            writeln!(out, "share       {:.1} % of the peak", 100.0 * at_peak / middle)?;
        }
        if let Some(rss) = self.peak_rss {
            writeln!(out, "memory      {} at most, mapped files included", bytes(rss))?;
        }
        if let Some(stages) = self.stages {
            self.print_stages(&mut out, stages)?;
        }
        Ok(())
    }

    fn print_stages(&self, out: &mut impl Write, stages: Stages) -> Result<()> {
        let total = stages.linear + stages.attention + stages.conv + stages.other;
        writeln!(out)?;
        writeln!(out, "where the time goes, one more run of {}:", duration(total))?;
        let Work { linear_flop, attention_flop, conv_flop, .. } = self.work;
        for (name, seconds, flop) in [
            ("linear", stages.linear, linear_flop),
            ("attention", stages.attention, attention_flop),
            ("convolution", stages.conv, conv_flop),
            ("all else", stages.other, 0),
        ] {
            let rate = if flop > 0 { format!("  {:.1} GFLOP/s", flop as f64 / seconds / 1e9) } else { String::new() };
            if seconds > 0.0 {
                writeln!(out, "{name:<12}{:>10}  {:>5.1} %{rate}", duration(seconds), 100.0 * seconds / total)?;
            }
        }
        Ok(())
    }
}

/// The vector extension in use.
pub(super) fn level() -> String {
    format!("{:?}", Level::best()).to_lowercase()
}

fn giga(flop: u64) -> f64 {
    flop as f64 / 1e9
}

/// `12.3 ms`, `2.345 s`.
pub(super) fn duration(seconds: f64) -> String {
    if seconds < 0.1 { format!("{:.2} ms", 1000.0 * seconds) } else { format!("{seconds:.3} s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn durations() {
        assert_eq!([0.01234, 2.3456].map(duration), ["12.34 ms", "2.346 s"]);
    }
}
