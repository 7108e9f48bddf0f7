//! `darkroom bench kernels`: which share of the machine's peak the kernels reach at FLUX.1's shapes.
//!
//! The peak is measured beside each run by loops that multiply in registers only, in the same arithmetic: a share can be
//! compared across machines and with a busy day, GFLOP/s cannot. One thread is timed by the time it had a core.

use std::{
    io::Write,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Result;
use clap::Args as ClapArgs;
use serde_json::json;
use tensor::{
    Backend, BlockScales, Bytes, DType, Mask, Padding, Precision, Rows, Scale, Scales, Shape, Tensor, Weight, cpu::Cpu,
};

use super::{
    arrays::normal,
    measure::{level, median},
};
use crate::Usage;

/// Tell which share of the machine's peak the kernels reach.
#[derive(ClapArgs)]
#[command(after_help = "\
Example:  darkroom bench kernels --threads 1 --only \"linear 768 × 3072\"")]
pub(super) struct Args {
    /// Threads [default: all cores]; one is timed by the time it had a core, so that others disturb it little
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Only kernels whose line contains this: bf16, attention, conv, \"768 × 3072\" …
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Runs that are timed
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// Tokens, in-features, out-features: a 256×256 picture's, one of 1024×1024, text alone, few tokens.
const LINEARS: [[usize; 3]; 13] = [
    [768, 3072, 9216],
    [768, 3072, 3072],
    [768, 3072, 12288],
    [768, 12288, 3072],
    [768, 3072, 21504],
    [768, 15360, 3072],
    [4608, 3072, 3072],
    [77, 768, 3072],
    [32, 3072, 3072],
    [16, 3072, 3072],
    [8, 3072, 3072],
    [1, 3072, 18432],
    [64, 256, 256],
];

/// The product that is measured with each storage format.
const STORED: [usize; 3] = [768, 3072, 12288];

/// Formats of weights.
const FORMATS: [DType; 19] = [
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::F8E4M3,
    DType::F8E5M2,
    DType::I8,
    DType::Q8_0,
    DType::Q6K,
    DType::Q5_1,
    DType::Q5_0,
    DType::Q5K,
    DType::Q4_1,
    DType::Q4_0,
    DType::Q4K,
    DType::IQ4NL,
    DType::IQ4XS,
    DType::NF4,
    DType::Q3K,
    DType::Q2K,
];

/// Side, in-channels, out-channels, kernel: the decoder's.
const CONVS: [[usize; 4]; 5] =
    [[128, 512, 512, 3], [256, 256, 256, 3], [512, 128, 128, 3], [512, 128, 3, 3], [128, 16, 512, 3]];

/// Tokens, heads, width of a head: the transformer's, T5's, the decoder's.
const ATTENTIONS: [[usize; 3]; 5] = [[768, 24, 128], [1536, 24, 128], [4608, 4, 128], [512, 64, 64], [1024, 1, 512]];

/// Makes the operands and gives what is timed.
type Prepare = Box<dyn Fn(&Arc<dyn Backend>) -> Box<dyn Fn() -> Tensor>>;

struct Kernel {
    /// `bf16 linear 768 × 3072 → 9216`.
    name: String,
    /// Whose peak it is measured against.
    precision: Precision,
    flop: f64,
    prepare: Prepare,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let kernels: Vec<Kernel> = all().into_iter().filter(|kernel| kernel.name.contains(&args.only)).collect();
    if kernels.is_empty() {
        let problem = format!("--only: no kernel's line contains '{}'; hint: leave it out to see all", args.only);
        return Err(Usage(problem).into());
    }
    let cpu = Cpu::new(args.threads.map(usize::from));
    let backend: Arc<dyn Backend> = cpu.clone();
    let clock = Clock { one_thread: args.threads == Some(1) };
    let mut out = std::io::stdout().lock();
    let mut rows = Vec::new();
    if !args.json {
        writeln!(out, "{:44} {:>9}  {:>6}  lowest … highest, % of the peak", "kernel", "GFLOP/s", "share")?;
    }
    for kernel in kernels {
        let Rate { giga, share, low, high } = measure(&kernel, args.runs, &cpu, &backend, &clock);
        if args.json {
            rows.push(json!({
                "kernel": kernel.name, "precision": kernel.precision.to_string(), "gflop_per_second": giga,
                "share_of_peak": share, "lowest": low, "highest": high,
            }));
        } else {
            let [share, low, high] = [share, low, high].map(|share| 100.0 * share);
            writeln!(out, "{:44} {giga:9.1}  {share:5.1}   {low:.1} … {high:.1}", kernel.name)?;
        }
    }
    if args.json {
        let report = json!({"bench": "kernels", "threads": args.threads, "vectors": level(), "kernels": rows});
        writeln!(out, "{report:#}")?;
    }
    Ok(())
}

fn all() -> Vec<Kernel> {
    let mut all = Vec::new();
    for precision in Precision::ALL {
        for sizes in LINEARS {
            all.push(linear(precision, sizes, Stored::AsBf16));
        }
    }
    for precision in [Precision::BF16, Precision::Int8] {
        for dtype in FORMATS {
            all.push(linear(precision, STORED, Stored::As(dtype)));
        }
    }
    // Fewer rows are computed from the file in any case.
    for sizes in LINEARS.into_iter().filter(|[rows, ..]| *rows >= 32) {
        all.push(linear(Precision::Int8, sizes, Stored::Kept));
    }
    for precision in [Precision::F32, Precision::BF16] {
        for [side, from, to, kernel] in CONVS {
            all.push(Kernel {
                name: format!("{precision} conv {side}² × {from} → {to}, {kernel}×{kernel}"),
                precision,
                flop: 2.0 * (side * side * from * to * kernel * kernel) as f64,
                prepare: Box::new(move |backend| {
                    let x = random(backend, [side, side, from]);
                    let weight = weight([to, from, kernel, kernel].into(), DType::BF16, precision);
                    Box::new(move || x.conv2d(&weight, None, 1, Padding::all(kernel / 2)))
                }),
            });
        }
    }
    for precision in [Precision::F32, Precision::BF16] {
        for [tokens, heads, d] in ATTENTIONS {
            all.push(Kernel {
                name: format!("{precision} attention {tokens} tokens, {heads} × {d}"),
                precision,
                flop: 4.0 * (tokens * tokens * heads * d) as f64,
                prepare: Box::new(move |backend| {
                    let [q, k, v] = [1, 2, 3].map(|_| random(backend, [tokens, heads, d]));
                    Box::new(move || q.attention(&k, &v, (d as f32).sqrt().recip(), Mask::None, precision))
                }),
            });
        }
    }
    all
}

/// How a weight lies in memory.
#[derive(Clone, Copy)]
enum Stored {
    AsBf16,
    As(DType),
    /// Rounded to int8 before.
    Kept,
}

fn linear(precision: Precision, [tokens, from, to]: [usize; 3], stored: Stored) -> Kernel {
    let (dtype, told) = match stored {
        Stored::AsBf16 => (DType::BF16, String::new()),
        Stored::As(dtype) => (dtype, format!(", stored as {}", dtype.name())),
        Stored::Kept => (DType::BF16, ", kept".to_owned()),
    };
    Kernel {
        name: format!("{precision} linear {tokens} × {from} → {to}{told}"),
        precision,
        flop: 2.0 * (tokens * from * to) as f64,
        prepare: Box::new(move |backend| {
            let x = random(backend, [tokens, from]);
            let mut weight = weight([to, from].into(), dtype, precision);
            if let (Stored::Kept, Some(kept)) = (stored, weight.keep()) {
                kept.open();
            }
            Box::new(move || x.linear(&weight, None))
        }),
    }
}

fn random<const N: usize>(backend: &Arc<dyn Backend>, shape: [usize; N]) -> Tensor {
    Tensor::from_vec(backend, shape, normal(shape.iter().product(), 1))
}

/// A weight in some format. Decoding takes the same time for all numbers, so any bytes do that are no infinity, not-a-number
/// or denormal in any format: 0x38 to 0x3f are numbers or scales between 4e-5 and 2 in all of them.
fn weight(shape: Shape, dtype: DType, precision: Precision) -> Weight {
    let mut state = 7u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        0x38 | (state >> 29) as u8
    };
    let bytes: Arc<[u8]> = std::iter::repeat_with(next).take(dtype.bytes(shape.count())).collect();
    let scale = if dtype == DType::NF4 { nf4_scale(shape.count()) } else { Scale::NONE };
    let rows = Rows { count: shape[0], dtype, scale, bytes: Bytes::from(bytes) };
    Weight::new(shape, vec![rows], precision)
}

/// The same scale for each 64 of `count` elements, and sixteen even values.
fn nf4_scale(count: usize) -> Scale {
    const SIZE: usize = 64;
    let bytes: Arc<[u8]> = std::iter::repeat_n(0.5f32.to_le_bytes(), count / SIZE).flatten().collect();
    let values = std::array::from_fn(|code| (code as f32 - 7.5) / 8.0);
    Scale::PerBlock(Arc::new(BlockScales { values, size: SIZE, scales: Scales::Plain(Bytes::from(bytes)), first: 0 }))
}

/// Medians and ends; shares are of 1.
struct Rate {
    giga: f64,
    share: f64,
    low: f64,
    high: f64,
}

/// Each run's peak is measured beside it.
fn measure(kernel: &Kernel, runs: u32, cpu: &Cpu, backend: &Arc<dyn Backend>, clock: &Clock) -> Rate {
    /// The scheduler's clock advances in ticks of 4 ms.
    const LEAST_SECONDS: f64 = 0.05;
    let run = (kernel.prepare)(backend);
    run();
    let (mut shares, mut rates) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let start = clock.now();
        let peak = cpu.run_at_peak(kernel.precision) / (clock.now() - start);
        let start = clock.now();
        let mut rounds = 0.0;
        while rounds == 0.0 || clock.now() - start < LEAST_SECONDS {
            run();
            rounds += 1.0;
        }
        let rate = rounds * kernel.flop / (clock.now() - start);
        rates.push(rate / 1e9);
        shares.push(rate / peak);
    }
    let end = |by: fn(f64, f64) -> f64| shares.iter().copied().reduce(by).unwrap_or(f64::NAN);
    let middle = |values: &[f64]| median(values).unwrap_or(f64::NAN);
    Rate { giga: middle(&rates), share: middle(&shares), low: end(f64::min), high: end(f64::max) }
}

/// Seconds, of the wall or of this thread.
struct Clock {
    one_thread: bool,
}

impl Clock {
    fn now(&self) -> f64 {
        let spent =
            || std::fs::read_to_string("/proc/thread-self/schedstat").ok()?.split(' ').next()?.parse::<f64>().ok();
        match spent() {
            Some(nanoseconds) if self.one_thread => 1e-9 * nanoseconds,
            _ => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |t| t.as_secs_f64()),
        }
    }
}
