//! Compares `learning.cu` with [`plain`] on a CPU: compiled as C++, with one thread for each thread of a block. Skipped
//! where there is no C++20 compiler. The calls of CUDA itself are not tested here.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Heads, ROWS, compile_options, plain, runs};

/// More than the threads of a block take at once.
const FEATURES: usize = 150;
/// Cells of 1, 150 and 9 rows: less than a tile, and more than a block.
const STARTS: [u32; 4] = [0, 1, 151, 160];
const TOKENS: usize = 160;

/// A program of C++20, from its source or from a file; what the compiler says where it says no.
fn compiled(source: &Path, program: &Path, defined: &[String]) -> Result<(), String> {
    let mut compiler = Command::new("c++");
    compiler.args(["-std=c++20", "-O1", "-pthread"]).args(defined).arg(source).arg("-o").arg(program);
    let done = compiler.output().map_err(|e| e.to_string())?;
    if done.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&done.stderr).into_owned()) }
}

/// Whether there is a compiler that knows what the harness needs.
fn can_compile(folder: &Path) -> bool {
    let source = folder.join("any.cpp");
    std::fs::write(&source, "#include <barrier>\nint main() { std::barrier<> gate(1); gate.arrive_and_wait(); }")
        .unwrap();
    compiled(&source, &folder.join("any"), &[]).is_ok()
}

struct Request<'a> {
    kernel: u64,
    grid: [usize; 3],
    fills: usize,
    numbers: &'a [&'a [f32]],
    places: &'a [&'a [u32]],
    counts: &'a [usize],
}

impl Request<'_> {
    fn run(&self, program: &Path) -> Vec<f32> {
        let mut bytes = Vec::new();
        let mut put = |n: usize| bytes.extend((n as u64).to_le_bytes());
        put(self.kernel as usize);
        self.grid.iter().for_each(|n| put(*n));
        [self.fills, self.numbers.len(), self.places.len(), self.counts.len()].into_iter().for_each(&mut put);
        for array in self.numbers {
            bytes.extend((array.len() as u64).to_le_bytes());
            bytes.extend_from_slice(bytemuck::cast_slice(array));
        }
        for array in self.places {
            bytes.extend((array.len() as u64).to_le_bytes());
            bytes.extend_from_slice(bytemuck::cast_slice(array));
        }
        self.counts.iter().for_each(|n| bytes.extend((*n as u64).to_le_bytes()));
        let mut child = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&bytes).unwrap();
        let done = child.wait_with_output().unwrap();
        assert!(done.status.success(), "kernel {}", self.kernel);
        done.stdout.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }
}

fn same(what: &str, ours: &[f32], exact: &[f32]) {
    assert_eq!(ours.len(), exact.len(), "{what}");
    let length = (exact.iter().map(|v| v * v).sum::<f32>() / exact.len() as f32).sqrt();
    for (i, (a, b)) in ours.iter().zip(exact).enumerate() {
        assert!((a - b).abs() <= 2e-5 * (length + b.abs()), "{what}, number {i}: {a}, not {b}");
    }
}

#[test]
fn kernels_of_a_device_are_the_plain_ones() {
    for (dim, rows_of_thread) in [(8, 1), (7, 2)] {
        let folder = tempfile::tempdir().unwrap();
        if !can_compile(folder.path()) {
            println!("skipped: no compiler of C++20");
            return;
        }
        let (source, program) = ("src/device/on_cpu.cpp", folder.path().join("on_cpu"));
        let defined = compile_options(dim, FEATURES, rows_of_thread);
        // Where the test runs, not where it was compiled: checkouts may share what cargo built.
        let folder = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        compiled(&Path::new(&folder).join(source), &program, &defined).unwrap();
        let h = Heads { heads: 3, dim };
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut random = |count: usize| -> Vec<f32> { (0..count).map(|_| rng.random_range(-1.5..1.5)).collect() };
        features(&program, h, &mut random);
        attention(&program, h, &mut random);
        rows(&program, &mut random);
    }
}

#[test]
fn runs_cover_every_row_once() {
    assert_eq!(runs(&[0, 5, 5, 7], 3), [0, 0, 3, 0, 3, 5, 2, 5, 7]);
    assert_eq!(runs(&[0], 3), [0u32; 0]);
}

fn features(program: &Path, h: Heads, random: &mut impl FnMut(usize) -> Vec<f32>) {
    let (short, long) = (runs(&STARTS, ROWS), runs(&STARTS, 100));
    let (blocks, heads, cells) = (short.len() / 3, h.heads, STARTS.len() - 1);
    let (x, w) = (random(TOKENS * h.width()), random(FEATURES * h.dim));
    let most = plain::largest(&x, &w, h);
    let counts = [TOKENS, heads];
    let request = Request {
        kernel: 0,
        grid: [2, heads, 1],
        fills: TOKENS * heads,
        numbers: &[&x, &w],
        places: &[],
        counts: &counts,
    };
    same("largest", &request.run(program), &most);
    let wide = x.chunks_exact(h.dim).zip(&most).flat_map(|(x, m)| x.iter().copied().chain([*m]));
    let (xl, r): (Vec<f32>, _) = (wide.collect(), random(TOKENS * h.wider()));
    let t = random(cells * FEATURES * h.wider());
    let sums = Request {
        kernel: 1,
        grid: [blocks, heads, 1],
        fills: xl.len(),
        numbers: &[&xl, &w, &t],
        places: &[&short],
        counts: &[heads],
    };
    same("gather", &sums.run(program), &plain::gather(&xl, &w, &t, &STARTS, h));
    let derivatives = Request { kernel: 2, fills: x.len(), numbers: &[&xl, &r, &w, &t], ..sums };
    same("derivative", &derivatives.run(program), &plain::derivative(&xl, &r, &w, &t, &STARTS, h));
    // Runs of 1, 100, 50 and 9 rows: their sums are those of cells of these lengths.
    let (pieces, starts) = (long.len() / 3, [0, 1, 101, 151, 160]);
    let scattered = Request {
        kernel: 3,
        grid: [pieces, heads, FEATURES.div_ceil(ROWS)],
        fills: pieces * FEATURES * h.wider(),
        numbers: &[&xl, &r, &w],
        places: &[&long],
        counts: &[heads],
    };
    same("scatter", &scattered.run(program), &plain::scatter(&xl, &r, &w, &starts, h));
}

fn attention(program: &Path, h: Heads, random: &mut impl FnMut(usize) -> Vec<f32>) {
    let short = runs(&STARTS, ROWS);
    let (qkv, g) = (random(TOKENS * 3 * h.width()), random(TOKENS * h.width()));
    let given = plain::attend(&qkv, &STARTS, h);
    let request = Request {
        kernel: 4,
        grid: [short.len() / 3, h.heads, 1],
        fills: given.len(),
        numbers: &[&qkv],
        places: &[&STARTS, &short],
        counts: &[h.heads],
    };
    same("attend", &request.run(program), &given);
    let backward = Request { kernel: 5, fills: qkv.len(), numbers: &[&qkv, &given, &g], ..request };
    same("attend_backward", &backward.run(program), &plain::attend_backward(&qkv, &given, &g, &STARTS, h));
}

fn rows(program: &Path, random: &mut impl FnMut(usize) -> Vec<f32>) {
    let (count, width) = (5, 150);
    let (x, g) = (random(count * width), random(count * width));
    let (weight, bias) = (random(width), random(width));
    let norm = Request {
        kernel: 6,
        grid: [count, 1, 1],
        fills: x.len(),
        numbers: &[&x, &weight, &bias],
        places: &[],
        counts: &[width, count],
    };
    same("normalise", &norm.run(program), &plain::normalise(&x, &weight, &bias));
    let backward = Request { kernel: 7, fills: 2 * x.len(), numbers: &[&x, &weight, &g], ..norm };
    same("norm_backward", &backward.run(program), &plain::norm_backward(&x, &weight, &g));
    let added = Request { kernel: 10, numbers: &[&x, &bias], counts: &[width, x.len()], ..norm };
    same("biased", &added.run(program), &plain::biased(&x, &bias));
    // Two blocks for more numbers than their threads, so that each goes on by strides.
    let gelu = Request { kernel: 8, grid: [2, 1, 1], fills: x.len(), numbers: &[&x, &g], counts: &[x.len()], ..norm };
    same("gelu_backward", &gelu.run(program), &plain::gelu_backward(&x, &g));
    let (starts, sources) = ([0, 3, 3, 8], [4, 0, 4, 1, 2, 3, 0, 0]);
    let sums = Request {
        kernel: 9,
        fills: 3 * width,
        numbers: &[&x],
        places: &[&starts, &sources],
        counts: &[width, 3 * width],
        ..gelu
    };
    same("sum_rows", &sums.run(program), &plain::sum_rows(&x, &starts, &sources, width));
}
