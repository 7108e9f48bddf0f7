//! The dry run counts what the kernels take: no operation may take more memory than it says, nor much less.

use std::sync::Arc;

use tensor::{
    Backend, Bytes, DType, End, GroupNorm, Mask, Padding, Precision, Rows, Scale, Tensor, Term, Unary, Weight,
    cpu::{Cpu, Level},
    dry_run::DryRun,
};

fn weight(shape: &[usize], precision: Precision) -> Weight {
    let shape = tensor::Shape::new(shape);
    let bytes: Arc<[u8]> = vec![0; 2 * shape.count()].into();
    let rows = Rows { count: shape[0], dtype: DType::BF16, scale: Scale::NONE, bytes: Bytes::from(bytes) };
    Weight::new(shape, vec![rows], precision)
}

fn zeros(backend: &Arc<dyn Backend>, shape: &[usize]) -> Tensor {
    let shape = tensor::Shape::new(shape);
    Tensor::from_vec(backend, shape, vec![0.0; shape.count()])
}

/// Bytes that `work` takes beyond its arguments: as counted, and as taken by the cpu backend.
fn compare(level: Level, what: &str, work: impl Fn(&Arc<dyn Backend>, &dyn Fn())) {
    let dry = DryRun::with_level(level);
    let backend: Arc<dyn Backend> = dry.clone();
    let before = std::cell::Cell::new(0);
    work(&backend, &|| {
        dry.reset();
        before.set(dry.report().live_bytes);
    });
    let counted = dry.report().peak_bytes - before.get();

    let cpu = Cpu::with_level(level, Some(2));
    let backend: Arc<dyn Backend> = cpu.clone();
    work(&backend, &|| {
        cpu.release_idle();
        before.set(cpu.memory().live);
    });
    let taken = cpu.memory().peak - before.get();
    assert!(taken <= counted, "{what} on {level:?}: {taken} bytes were taken, {counted} counted");
    assert!(10 * taken >= 7 * counted, "{what} on {level:?}: {taken} bytes were taken, but {counted} counted");
    // Each of some blocks is rounded up to 64 KiB.
    assert!(cpu.memory().held <= cpu.memory().peak + 8 * 64 * 1024, "{what}: {:?}", cpu.memory());
}

#[test]
fn no_operation_takes_more_than_the_dry_run_counts() {
    for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
        for precision in [Precision::F32, Precision::BF16, Precision::Int8] {
            for rows in [1, 5, 300] {
                compare(level, &format!("a layer of {rows} rows in {precision}"), |backend, start| {
                    let (x, w) = (zeros(backend, &[rows, 512]), weight(&[768, 512], precision));
                    start();
                    x.linear_unary(&w, None, Unary::GeluTanh);
                });
            }
            compare(level, &format!("a gated layer in {precision}"), |backend, start| {
                let (x, w) = (zeros(backend, &[300, 512]), weight(&[768, 512], precision));
                let (residual, gate) = (zeros(backend, &[300, 768]), zeros(backend, &[768]));
                start();
                residual.linear_gated_add(&gate, &[&x], &w, None);
            });
            for rows in [3, 300] {
                compare(level, &format!("a layer of {rows} rows with terms in {precision}"), |backend, start| {
                    let (x, w) = (zeros(backend, &[rows, 512]), weight(&[768, 512], precision));
                    let (u, up) = (zeros(backend, &[rows, 96]), weight(&[768, 64], precision.without_int8()));
                    let (residual, gate) = (zeros(backend, &[rows, 768]), zeros(backend, &[768]));
                    let terms = [0, 32].map(|start| Term { x: &u, start, weight: &up, rows: 0..768 });
                    start();
                    Tensor::linear_sum(&[&x], &w, None, &terms, End::GatedAdd { residual: &residual, gate: &gate });
                });
            }
            for (kernel, stride) in [(3, 1), (1, 1), (3, 2)] {
                compare(level, &format!("a convolution of {kernel} in {precision}"), |backend, start| {
                    let (x, w) = (zeros(backend, &[40, 50, 64]), weight(&[96, 64, kernel, kernel], precision));
                    let row = zeros(backend, &[64]);
                    let norm = GroupNorm { groups: 32, weight: &row, bias: &row, eps: 1e-6 };
                    start();
                    x.conv2d(&w, None, stride, Padding::all(kernel / 2));
                    x.norm_silu_conv2d(norm, &w, None, Padding::all(kernel / 2), None);
                });
            }
        }
        for (tokens, heads, d) in [(300, 4, 128), (200, 8, 64), (400, 1, 512)] {
            for precision in [Precision::F32, Precision::BF16] {
                compare(level, &format!("attention of {heads} heads of {d} in {precision}"), |backend, start| {
                    let [q, k, v] = [(); 3].map(|()| zeros(backend, &[tokens, heads, d]));
                    start();
                    q.attention(&k, &v, 0.1, Mask::None, precision);
                });
            }
        }
        compare(level, "norms and what is between", |backend, start| {
            let x = zeros(backend, &[30, 40, 64]);
            let row = zeros(backend, &[64]);
            start();
            let norm = GroupNorm { groups: 32, weight: &row, bias: &row, eps: 1e-6 };
            let y = x.group_norm(norm).upsample_nearest_2x();
            let y = y.slice(0, 3, 20).permute(&[2, 0, 1]).reshape([64 * 20, 80]);
            Tensor::concat(&[&y, &y], 0).layer_norm(1e-6).add(&zeros(backend, &[80]));
        });
    }
}

#[test]
fn a_chain_of_operations_stays_within_the_count() {
    compare(Level::best(), "a chain", |backend, start| {
        let wide = weight(&[2048, 512], Precision::BF16);
        let back = weight(&[512, 2048], Precision::BF16);
        // What came from outside is counted, but is not the backend's: it must not be let go on the way.
        let input = zeros(backend, &[700, 512]);
        let mut x = input.clone();
        start();
        for _ in 0..5 {
            let hidden = x.layer_norm(1e-6).linear_unary(&wide, None, Unary::Silu);
            x = x.add(&hidden.linear(&back, None));
            x = Tensor::concat(&[&x.slice(0, 100, 600), &x.slice(0, 0, 100)], 0);
        }
    });
}
