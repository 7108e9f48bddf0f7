//! Which share of the machine's peak the kernels reach at FLUX.1's shapes.
//!
//! `cargo run --release -p tensor --example peak [threads [name]]`; every figure is the median of alternating runs. One
//! thread is timed by the time it had a core, so that a busy machine does little harm.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use tensor::{Backend, Bytes, DType, Mask, Padding, Precision, Rows, Scale, Tensor, Weight, cpu::Cpu};

fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / 8_388_608.0 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn bf16_weight(shape: &[usize], precision: Precision) -> Weight {
    let values = random(shape.iter().product(), 7);
    let bytes: Arc<[u8]> = values.iter().flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes()).collect();
    let rows = Rows { count: shape[0], dtype: DType::BF16, scale: Scale::NONE, bytes: Bytes::from(bytes) };
    Weight::new(tensor::Shape::new(shape), vec![rows], precision)
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

/// Median and spread of the share of the peak, each run's peak measured beside it.
fn report(name: &str, cpu: &Cpu, one_thread: bool, precision: Precision, flop: f64, run: impl Fn() -> Tensor) {
    const RUNS: usize = 7;
    let clock = Clock { one_thread };
    run();
    let mut shares = Vec::new();
    let mut rates = Vec::new();
    for _ in 0..RUNS {
        let start = clock.now();
        let peak = cpu.run_at_peak(precision) / (clock.now() - start);
        let start = clock.now();
        let mut rounds = 0.0;
        while rounds == 0.0 || clock.now() - start < 0.05 {
            run();
            rounds += 1.0;
        }
        let rate = rounds * flop / (clock.now() - start);
        rates.push(rate / 1e9);
        shares.push(100.0 * rate / peak);
    }
    shares.sort_by(f64::total_cmp);
    rates.sort_by(f64::total_cmp);
    let [low, median, high] = [shares[0], shares[RUNS / 2], shares[RUNS - 1]];
    println!("{name:34} {:7.1} GFLOP/s  {median:5.1} % of peak ({low:.1} … {high:.1})", rates[RUNS / 2]);
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let threads = arguments.next().and_then(|n| n.parse().ok());
    let one_thread = threads == Some(1);
    let only = arguments.next().unwrap_or_default();
    let cpu = Cpu::new(threads);
    let backend: Arc<dyn Backend> = cpu.clone();
    for precision in [Precision::F32, Precision::BF16, Precision::Int8] {
        println!("{precision:?}");
        for (m, k, n) in [
            (768, 3072, 9216),
            (768, 3072, 3072),
            (768, 3072, 12288),
            (768, 12288, 3072),
            (768, 3072, 21504),
            (768, 15360, 3072),
            (4608, 3072, 3072),
            (77, 768, 3072),
            (32, 3072, 3072),
            (16, 3072, 3072),
            (8, 3072, 3072),
            (4, 3072, 18432),
            (1, 3072, 18432),
            (64, 256, 256),
        ] {
            let name = format!("linear {m} × {k} → {n}");
            if !name.contains(&only) {
                continue;
            }
            let x = Tensor::from_vec(&backend, [m, k], random(m * k, 3));
            let weight = bf16_weight(&[n, k], precision);
            report(&name, &cpu, one_thread, precision, 2.0 * (m * k * n) as f64, || x.linear(&weight, None));
        }
        if precision == Precision::Int8 {
            continue;
        }
        for (side, from, to, kernel, stride) in [
            (128, 512, 512, 3, 1),
            (256, 256, 256, 3, 1),
            (512, 128, 128, 3, 1),
            (512, 128, 3, 3, 1),
            (128, 16, 512, 3, 1),
        ] {
            let name = format!("conv {side}² × {from} → {to}, {kernel}×{kernel}/{stride}");
            if !name.contains(&only) {
                continue;
            }
            let x = Tensor::from_vec(&backend, [side, side, from], random(side * side * from, 3));
            let weight = bf16_weight(&[to, from, kernel, kernel], precision);
            let flop = 2.0 * (side * side * from * to * kernel * kernel) as f64;
            report(&name, &cpu, one_thread, precision, flop, || {
                x.conv2d(&weight, None, stride, Padding::all(kernel / 2))
            });
        }
    }
    let shapes = [(768, 24, 128), (1536, 24, 128), (4608, 4, 128), (512, 64, 64), (1024, 1, 512), (4096, 1, 512)];
    for ((tokens, heads, d), precision) in
        shapes.into_iter().flat_map(|s| [Precision::F32, Precision::BF16].map(|p| (s, p)))
    {
        let name = format!("attention {tokens} tokens, {heads} × {d}, {precision}");
        if !name.contains(&only) {
            continue;
        }
        let [q, k, v] =
            [1, 2, 3].map(|seed| Tensor::from_vec(&backend, [tokens, heads, d], random(tokens * heads * d, seed)));
        let flop = 4.0 * (tokens * tokens * heads * d) as f64;
        let bias = random(if d == 64 { heads * tokens * tokens } else { 0 }, 4);
        let bias = (d == 64).then(|| Tensor::from_vec(&backend, [heads, tokens, tokens], bias));
        let mask = bias.as_ref().map_or(Mask::None, Mask::Bias);
        report(&name, &cpu, one_thread, precision, flop, || {
            q.attention(&k, &v, 1.0 / (d as f32).sqrt(), mask, precision)
        });
    }
}
