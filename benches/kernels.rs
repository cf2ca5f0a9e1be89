//! Kernels of the model at the sizes of 100M: encoder 768 wide with 12 heads, decoder 512 wide with 8 heads of 64.

use std::hint::black_box;
use std::time::Duration;

use candle_core::{Device, Tensor};
use cellql_kernels::{
    Activations, Attention, BLOCK, Dtype, Favor, FavorScratch, Isa, LayerNorm, Linear, Rows, Then, gelu, softmax,
};
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, measurement::WallTime};
use rand::{Rng, SeedableRng};

const DTYPES: [(Dtype, &str); 3] = [(Dtype::F32, "f32"), (Dtype::Bf16, "bf16"), (Dtype::Int8, "int8")];

fn random(n: usize) -> Vec<f32> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn rows(n: usize, width: usize) -> Rows {
    let mut rows = Rows::new(n, width);
    let values = random(n * width);
    values.chunks(width).enumerate().for_each(|(i, row)| rows.row_mut(i).copy_from_slice(row));
    rows
}

fn group<'a>(c: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(name);
    group.sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    group
}

/// FLOP/s: criterion calls them elements.
fn flops(n: usize) -> Throughput {
    Throughput::Elements(n as u64)
}

/// The machine's f32 matrix product, all threads and one, from a library of its own (gemm).
fn product(group: &mut BenchmarkGroup<WallTime>) {
    let n = 1536;
    let a = Tensor::from_vec(random(n * n), (n, n), &Device::Cpu).unwrap();
    group.throughput(flops(2 * n * n * n));
    group.bench_function("machine: gemm's f32 product, all threads", |b| b.iter(|| black_box(a.matmul(&a).unwrap())));
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    group.bench_function("machine: gemm's f32 product, one thread", |b| {
        one.install(|| b.iter(|| black_box(a.matmul(&a).unwrap())));
    });
}

/// One thread, one block of rows. Limit: FLOPs; bf16 may reach 2 × and int8 4 × the f32 product.
fn linear(c: &mut Criterion) {
    let mut group = group(c, "linear layer 768 to 3072, FLOP/s");
    product(&mut group);
    let (inputs, outputs) = (768, 3072);
    let (weight, bias, x) = (random(inputs * outputs), random(outputs), rows(BLOCK, inputs));
    let (mut out, mut activations) = (Rows::new(BLOCK, outputs), Activations::default());
    group.throughput(flops(2 * BLOCK * inputs * outputs));
    for (dtype, name) in DTYPES {
        let layer = Linear::pack(Isa::best(), dtype, &weight, &bias, inputs, outputs);
        group.bench_function(format!("{name}, one thread"), |b| {
            b.iter(|| {
                let input = activations.of(dtype, x.view(0), BLOCK);
                layer.forward(input, BLOCK, Then::Relu, out.view_mut(0));
            });
        });
    }
}

/// All threads, one cell. Limit: FLOPs of both products; one exponential per score comes on top.
fn attention(c: &mut Criterion) {
    let (heads, dim) = (12, 64);
    for tokens in [400, 2000] {
        let mut group = group(c, &format!("encoder attention, {tokens} tokens, FLOP/s"));
        product(&mut group);
        let (qkv, mut out) = (rows(tokens, 3 * heads * dim), vec![0f32; tokens * heads * dim]);
        group.throughput(flops(4 * tokens * tokens * heads * dim));
        for (dtype, name) in &DTYPES[..2] {
            let attention = Attention { isa: Isa::best(), dtype: *dtype, heads, dim };
            group.bench_function(format!("{name}, all threads"), |b| {
                b.iter(|| attention.run(&qkv, &[0, tokens], &mut out));
            });
        }
    }
}

/// One thread, one block of rows. Limit: FLOPs; the product with P is f32 in every number format.
fn favor(c: &mut Criterion) {
    let mut group = group(c, "decoder attention, 266 features, FLOP/s");
    product(&mut group);
    let (heads, dim, features) = (8, 64, 266);
    let (k, v) = (rows(BLOCK, heads * dim), rows(BLOCK, heads * dim));
    let (mut out, mut scratch) = (Rows::new(BLOCK, heads * dim), FavorScratch::default());
    group.throughput(flops(4 * BLOCK * heads * dim * features));
    for (dtype, name) in &DTYPES[..2] {
        let favor = Favor::new(Isa::best(), *dtype, &random(features * dim), heads, dim);
        let mut sums = favor.no_keys();
        group.bench_function(format!("{name}, keys, one thread"), |b| {
            b.iter(|| favor.add_keys(k.view(0), v.view(0), BLOCK, &mut sums, &mut scratch));
        });
        let context = favor.context(&[sums], None);
        group.bench_function(format!("{name}, queries, one thread"), |b| {
            b.iter(|| favor.attend(k.view(0), BLOCK, &context, out.view_mut(0), &mut scratch));
        });
    }
}

/// One thread, rows in the second-level cache. Limit: bytes for norms, exponentials for the others.
fn elementwise(c: &mut Criterion) {
    let mut group = group(c, "rows of 3072 in cache, bytes");
    let (mut x, from) = (rows(BLOCK, 3072), rows(BLOCK, 3072));
    group.throughput(Throughput::Bytes((2 * 4 * BLOCK * 3072) as u64));
    group.bench_function("machine: copy", |b| {
        b.iter(|| (0..BLOCK).for_each(|i| x.row_mut(i).copy_from_slice(black_box(from.row(i)))));
    });
    let norm = LayerNorm::new(vec![1.0; 3072], vec![0.5; 3072]);
    group.bench_function("layer norm", |b| b.iter(|| (0..BLOCK).for_each(|i| norm.apply(x.row_mut(i)))));
    group.bench_function("gelu", |b| b.iter(|| (0..BLOCK).for_each(|i| gelu(x.row_mut(i)))));
    group.bench_function("softmax", |b| b.iter(|| (0..BLOCK).for_each(|i| softmax(x.row_mut(i)))));
}

criterion_group!(benches, linear, attention, favor, elementwise);
